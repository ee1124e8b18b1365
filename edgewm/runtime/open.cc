// From bytes to a verified model: header, table, digests, gaps; then verify.cc.
#define EWM_BUILDING
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernel.h"
#include "model.h"
#include "sha256.h"

namespace ewm {
namespace {

struct Hex {
  char s[2 * 8 + 4];
  explicit Hex(const uint8_t* digest) {
    for (int i = 0; i < 16; i++) s[i] = "0123456789abcdef"[digest[i / 2] >> (i % 2 ? 0 : 4) & 15];
    memcpy(s + 16, "...", 4);
  }
};

int check_digest(const Text& what, const void* data, uint64_t bytes, const uint8_t expected[32], ewm_fault* fault) {
  uint8_t found[32];
  sha256(data, bytes, found);
  if (memcmp(found, expected, 32) == 0) return EWM_OK;
  return refuse(fault, EWM_CORRUPT, what, Text("SHA-256 %s", Hex(found).s), Text("%s", Hex(expected).s));
}

// What can be said before the rest is read.
int check_header(const Header& h, uint64_t bytes, ewm_fault* fault) {
  if (memcmp(h.magic, "EDGEWM\r\n", 8) != 0) {
    const uint8_t* m = reinterpret_cast<const uint8_t*>(h.magic);
    return refuse(fault, EWM_NOT_EWM, "first 8 bytes",
                  Text("%02x %02x %02x %02x %02x %02x %02x %02x", m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7]),
                  "45 44 47 45 57 4d 0d 0a (EDGEWM CR LF)");
  }
  if (h.format != EWM_FORMAT)
    return refuse(fault, EWM_FORMAT_VERSION, "header", Text("format %u", h.format), Text("format %u", EWM_FORMAT));
  if (h.file_bytes != bytes)
    return refuse(fault, EWM_TRUNCATED, "file", Text("%llu bytes", (unsigned long long)bytes),
                  Text("%llu, as its header says", (unsigned long long)h.file_bytes));
  if (memcmp(h.target, target_name, sizeof(h.target)) != 0)
    return refuse(fault, EWM_WRONG_TARGET, "header", Text("target %.32s", h.target),
                  Text("this library's, %.32s", target_name));
  if (memcmp(h.kernels_sha256, kernels_sha256, 32) != 0)
    return refuse(fault, EWM_WRONG_KERNELS, "header", Text("kernels %s", Hex(h.kernels_sha256).s),
                  Text("%s", Hex(kernels_sha256).s));
  if (h.sections > (bytes - sizeof(Header)) / sizeof(Section))
    return refuse(fault, EWM_INVALID, "header", Text("%u sections", h.sections), "a section table inside the file");
  return EWM_OK;
}

int check_sections(ewm_model& m, const Header& h, ewm_fault* fault) {
  m.table = reinterpret_cast<const Section*>(m.file + sizeof(Header));
  m.sections = h.sections;
  uint64_t end = sizeof(Header) + uint64_t(m.sections) * sizeof(Section);
  if (int bad = check_digest("section table", m.table, end - sizeof(Header), h.table_sha256, fault)) return bad;
  for (uint32_t i = 0; i < m.sections; i++) {
    const Section& s = m.table[i];
    if (s.name[0] == 0 || memchr(s.name, 0, sizeof(s.name)) == nullptr)
      return refuse(fault, EWM_INVALID, Text("section %u", i), "a name without an end", "1 to 15 characters");
    uint64_t begin = (end + 63) & ~uint64_t(63);
    if (s.offset != begin || s.offset > m.file_bytes || s.bytes > m.file_bytes - s.offset)
      return refuse(
          fault, EWM_INVALID, Text("section %s", s.name),
          Text("offset %llu, %llu bytes", (unsigned long long)s.offset, (unsigned long long)s.bytes),
          Text("offset %llu, inside %llu bytes", (unsigned long long)begin, (unsigned long long)m.file_bytes));
    for (uint64_t at = end; at < begin; at++)
      if (m.file[at] != 0)
        return refuse(fault, EWM_CORRUPT, Text("byte %llu", (unsigned long long)at), "not zero", "0 between sections");
    for (uint32_t j = 0; j < i; j++)
      if (strcmp(m.table[j].name, s.name) == 0)
        return refuse(fault, EWM_INVALID, Text("section %s", s.name), "there twice", "each name once");
    if (int bad = check_digest(Text("section %s", s.name), m.file + s.offset, s.bytes, s.sha256, fault)) return bad;
    end = begin + s.bytes;
  }
  if (end != m.file_bytes)
    return refuse(fault, EWM_INVALID, "end of file", Text("%llu more bytes", (unsigned long long)(m.file_bytes - end)),
                  "nothing after the last section");
  return EWM_OK;
}

int check_program(const ewm_model& m, ewm_fault* fault) {
  constexpr uint32_t OWN = 7, MOST = 16;
  const char* const names[OWN] = {"sizes", "ports", "entries", "entry_ports", "steps", "calls", "operands"};
  uint8_t digests[MOST][32], program[32];
  const uint32_t count = OWN + engine_section_count;
  for (uint32_t i = 0; i < count; i++)
    for (uint32_t j = 0; j < m.sections; j++)
      if (strcmp(m.table[j].name, i < OWN ? names[i] : engine_sections[i - OWN]) == 0)
        memcpy(digests[i], m.table[j].sha256, 32);
  sha256(digests, count * sizeof(digests[0]), program);
  if (memcmp(program, program_sha256, 32) == 0) return EWM_OK;
  return refuse(fault, EWM_WRONG_KERNELS, "tables", Text("program %s", Hex(program).s),
                Text("%s", Hex(program_sha256).s));
}

int check(ewm_model& m, ewm_fault* fault) {
  const Header& h = *reinterpret_cast<const Header*>(m.file);
  if (int bad = check_header(h, m.file_bytes, fault)) return bad;
  if (int bad = check_sections(m, h, fault)) return bad;
  if (int bad = view(m, "sizes", 1, m.sizes, fault)) return bad;
  const Sizes& n = *m.sizes;
  if (int bad = view(m, "ports", n.ports, m.ports, fault)) return bad;
  if (int bad = view(m, "entries", n.entries, m.entries, fault)) return bad;
  if (int bad = view(m, "steps", n.steps, m.steps, fault)) return bad;
  if (int bad = view(m, "calls", n.calls, m.calls, fault)) return bad;
  if (int bad = view(m, "operands", n.operands, m.operands, fault)) return bad;
  if (int bad = view(m, "weights", n.weight_bytes, m.weights, fault)) return bad;
  uint64_t bytes = 0;
  if (ewm_section(&m, "entry_ports", &bytes) != nullptr) m.entry_port_count = static_cast<uint32_t>(bytes / 4);
  if (int bad = view(m, "entry_ports", m.entry_port_count, m.entry_ports, fault)) return bad;
  if (int bad = verify(m, fault)) return bad;
  if (int bad = verify_engine(m, fault)) return bad;
  return check_program(m, fault);
}

}  // namespace

int view_rows(const ewm_model& m, const char* name, uint64_t count, uint64_t row_bytes, const void*& rows,
              ewm_fault* fault) {
  uint64_t bytes = 0;
  rows = ewm_section(&m, name, &bytes);
  if (rows == nullptr) return refuse(fault, EWM_INVALID, Text("section %s", name), "not there", "in every file");
  if (bytes == count * row_bytes) return EWM_OK;
  return refuse(fault, EWM_INVALID, Text("section %s", name), Text("%llu bytes", (unsigned long long)bytes),
                Text("%llu rows of %llu", (unsigned long long)count, (unsigned long long)row_bytes));
}

namespace {

// Where the file's bytes go before anything is believed of them; read-only afterwards.
char* reserve(uint64_t bytes, ewm_fault* fault) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at != MAP_FAILED) {
    madvise(at, bytes, MADV_HUGEPAGE);  // weights are read from end to end; nothing is lost where it is refused
    return static_cast<char*>(at);
  }
  refuse(fault, EWM_NO_MEMORY, "model", Text("%s", strerror(errno)),
         Text("%llu bytes of memory", (unsigned long long)bytes));
  return nullptr;
}

int finish(char* file, uint64_t bytes, ewm_model** out, ewm_fault* fault) {
  ewm_model m{};
  m.file = file;
  m.file_bytes = bytes;
  int error = check(m, fault);
  ewm_model* kept = nullptr;
  if (error == EWM_OK) {
    kept = static_cast<ewm_model*>(malloc(sizeof(ewm_model)));
    if (kept == nullptr)
      error = refuse(fault, EWM_NO_MEMORY, "model", "malloc failed", Text("%u bytes", unsigned(sizeof(m))));
  }
  if (error != EWM_OK) {
    munmap(file, bytes);
    return error;
  }
  mprotect(file, bytes, PROT_READ);
  *kept = m;
  *out = kept;
  return EWM_OK;
}

int short_file(uint64_t bytes, ewm_fault* fault) {
  return refuse(fault, EWM_TRUNCATED, "file", Text("%llu bytes", (unsigned long long)bytes),
                Text("a header of %u", unsigned(sizeof(Header))));
}

bool read_all(int fd, char* to, uint64_t bytes) {
  for (uint64_t done = 0; done < bytes;) {
    ssize_t got = pread(fd, to + done, bytes - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      if (got == 0) errno = ENODATA;
      return false;
    }
    done += static_cast<uint64_t>(got);
  }
  return true;
}

int open_file(int fd, const char* path, ewm_model** model, ewm_fault* fault) {
  struct stat about;
  if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode))
    return refuse(fault, EWM_CANNOT_READ, Text("%s", path), "not a regular file", "a model.ewm");
  uint64_t bytes = static_cast<uint64_t>(about.st_size);
  Header h;
  if (bytes < sizeof(h)) return short_file(bytes, fault);
  if (!read_all(fd, reinterpret_cast<char*>(&h), sizeof(h)))
    return refuse(fault, EWM_CANNOT_READ, Text("%s", path), Text("%s", strerror(errno)), "its header");
  if (int bad = check_header(h, bytes, fault)) return bad;
  char* file = reserve(bytes, fault);
  if (file == nullptr) return EWM_NO_MEMORY;
  if (!read_all(fd, file, bytes)) {
    munmap(file, bytes);
    return refuse(fault, EWM_CANNOT_READ, Text("%s", path), Text("%s", strerror(errno)),
                  Text("%llu bytes", (unsigned long long)bytes));
  }
  return finish(file, bytes, model, fault);
}

}  // namespace
}  // namespace ewm

using namespace ewm;

extern "C" int ewm_open(const char* path, ewm_model** model, ewm_fault* fault) {
  if (path == nullptr || model == nullptr)
    return refuse(fault, EWM_BAD_ARGUMENT, "ewm_open", "null", "a path and a place");
  *model = nullptr;
  if (int bad = verify_processor(fault)) return bad;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return refuse(fault, EWM_CANNOT_READ, Text("%s", path), Text("%s", strerror(errno)), "a model.ewm");
  int error = open_file(fd, path, model, fault);
  close(fd);
  return error;
}

extern "C" int ewm_open_bytes(const void* data, uint64_t bytes, ewm_model** model, ewm_fault* fault) {
  if (data == nullptr || model == nullptr)
    return refuse(fault, EWM_BAD_ARGUMENT, "ewm_open_bytes", "null", "bytes and a place");
  *model = nullptr;
  if (int bad = verify_processor(fault)) return bad;
  if (bytes < sizeof(Header)) return short_file(bytes, fault);
  char* file = reserve(bytes, fault);
  if (file == nullptr) return EWM_NO_MEMORY;
  memcpy(file, data, bytes);
  return finish(file, bytes, model, fault);
}

extern "C" void ewm_close(ewm_model* model) {
  if (model == nullptr) return;
  munmap(const_cast<char*>(model->file), model->file_bytes);
  free(model);
}
