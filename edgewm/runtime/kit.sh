#!/bin/sh
# The board kit: time this bundle on the board at hand and print one JSON, for `benchmarks/take_kit.py`. No Python, no root.
#
#   sh kit.sh [flags of edgewm-tick] >board.json
#   sh kit.sh environment [ROOT]        only what the machine says of itself, as text
#   sh kit.sh watch SECONDS             the part of it that changes, again and again
#
# The text is sections, `== NAME` and then what a file holds or `== $ COMMAND` and what it prints (`== ! COMMAND` where it
# failed). What a machine lacks has no section. Nothing is judged here: edgewm/environment.py reads it, from any machine.
set -u
export LC_ALL=C
rate_hz=50 threads=1 # of this bundle

files() {
  for file in "$@"; do
    [ -f "$file" ] && [ -r "$file" ] || continue
    echo "== ${file#"$root"}"
    while IFS= read -r line || [ -n "$line" ]; do printf '%s\n' "$line"; done <"$file"
  done 2>/dev/null
}

some() { # of a file, the lines that match
  [ -r "$root$1" ] && echo "== $1" && sed -n "$2" "$root$1"
}

says() {
  command -v "$1" >/dev/null || return 0
  if said=$("$@" 2>&1); then echo "== \$ $*"; else echo "== ! $*"; fi
  printf '%s\n' "$said"
}

# Builtins alone: this runs beside what is timed.
changing() {
  files "$root"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq \
    "$root"/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count \
    "$root"/sys/class/devfreq/*/cur_freq "$root"/sys/kernel/debug/bpmp/debug/clk/emc/rate \
    "$root"/sys/class/thermal/thermal_zone*/type "$root"/sys/class/thermal/thermal_zone*/temp \
    "$root"/sys/class/thermal/cooling_device*/type "$root"/sys/class/thermal/cooling_device*/cur_state \
    "$root"/sys/class/hwmon/hwmon*/oc*_event_cnt "$root"/proc/loadavg "$root"/proc/uptime
}

environment() {
  root=${1-}
  for file in "$root"/proc/device-tree/model "$root"/proc/device-tree/compatible; do
    [ -r "$file" ] && echo "== ${file#"$root"}" && tr '\000' '\n' <"$file" && echo
  done
  some /proc/cpuinfo '1,/^$/p'
  some /proc/meminfo '/^MemTotal:/p;/^MemAvailable:/p;/^SwapTotal:/p'
  some /proc/self/limits '/^Max locked memory/p;/^Max realtime priority/p'
  some /proc/self/status '/^CapEff:/p;/^Cpus_allowed_list:/p'
  some /etc/os-release '/^PRETTY_NAME=/p'
  some /proc/sys/kernel/sched_rt_runtime_us p # `read` takes a byte at a time, and a number there is read at once or not
  files "$root"/proc/sys/kernel/osrelease "$root"/proc/version "$root"/sys/kernel/realtime \
    "$root"/sys/devices/system/clocksource/clocksource0/current_clocksource \
    "$root"/sys/devices/system/cpu/online "$root"/sys/devices/system/cpu/isolated \
    "$root"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor \
    "$root"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_min_freq \
    "$root"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq \
    "$root"/sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq \
    "$root"/sys/class/devfreq/*/governor "$root"/sys/class/devfreq/*/min_freq "$root"/sys/class/devfreq/*/max_freq \
    "$root"/sys/class/thermal/thermal_zone*/trip_point_*_type "$root"/sys/class/thermal/thermal_zone*/trip_point_*_temp \
    "$root"/etc/nv_tegra_release "$root"/proc/driver/nvidia/version
  for file in "$root"/usr/lib/*/libcuda.so.1 "$root"/usr/lib/*/*/libcuda.so.1; do
    [ -e "$file" ] && echo "== libcuda" && echo "${file#"$root"}" && break
  done
  [ -e "$root/proc/driver/nvidia" ] || [ -e "$root/sys/class/devfreq/17000000.gpu" ] || [ -e "$root/dev/nvhost-gpu" ] &&
    echo "== nvidia"
  echo "== tools"
  for tool in cat mkdir rm chmod sha256sum; do command -v "$tool"; done
  says uname -m
  says getconf GNU_LIBC_VERSION
  says nvpmodel -q
  says df -Pk .
  changing
}

watch() {
  root=
  while kill -0 $$; do # where $$ is gone, so is who asked
    echo "== sample"
    changing
    sleep "$1"
  done
}

quoted() {
  printf '"'
  tr -cd '\011\012\040-\176' | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/	/\\t/g' -e 's/$/\\n/' | tr -d '\n'
  printf '"'
}

refuse() {
  printf 'error: %s\n  where: %s\n  fix: %s\n' "$1" "$2" "$3" >&2
  exit 2
}

kit() {
  command -v sha256sum >/dev/null || refuse "no sha256sum" "$(uname -n)" "install coreutils or busybox"
  cd "$(dirname "$0")" || exit 2
  cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo "$threads")
  [ "$threads" -le "$cores" ] || threads=$cores
  folder=$(mktemp -d) || refuse "no temporary directory" "${TMPDIR:-/tmp}" "free some space or set TMPDIR"
  trap 'kill -9 $watching 2>/dev/null; rm -rf "$folder"' EXIT
  trap 'exit 130' HUP INT TERM
  watching=
  environment >"$folder/before" 2>/dev/null
  echo "replaying the golden answers ..." >&2
  ./edgewm-tick . --golden --threads "$threads" >"$folder/golden" 2>&1
  golden=$?
  echo "timing at $rate_hz Hz on $threads threads: a few minutes ..." >&2
  : >"$folder/during" # a short run may end before the watch has begun
  watch 1 >"$folder/during" 2>/dev/null &
  watching=$!
  ./edgewm-tick . --rate-hz "$rate_hz" --threads "$threads" "$@" --json "$folder/tick" 2>"$folder/said" ||
    { cat "$folder/said" >&2; exit 2; }
  kill -9 $watching
  watching=
  environment >"$folder/after" 2>/dev/null
  printf '{"schema_version": 1, "kit": 1,\n "sha256": {'
  comma=
  for file in model.ewm libedgewm.so edgewm-tick; do
    sum=$(sha256sum <$file)
    printf '%s"%s": "%s"' "$comma" "$file" "${sum%% *}"
    comma=', '
  done
  printf '},\n "golden": {"status": %d, "said": ' "$golden"
  quoted <"$folder/golden"
  printf '},\n "environment": {'
  comma=
  for part in before during after; do
    printf '%s"%s": ' "$comma" "$part"
    quoted <"$folder/$part"
    comma=', '
  done
  printf '},\n "tick": '
  cat "$folder/tick"
  echo '}'
}

case ${1-} in
environment) environment "${2-}" ;;
watch) watch "$2" ;;
*) kit "$@" ;;
esac
