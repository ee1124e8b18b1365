"""The report's style: one column on a phone, cards side by side where there is room, light or dark as one likes."""

STYLE = """
:root{--paper:#fbfaf7;--card:#fff;--ink:#20242c;--faint:#6d7480;--line:#e3e1da;--full:#2f6db5;--bundle:#cf5a1f;
--good:#16794f;--bad:#b3261e;--none:#8a6a00;--bar:#8fa3bd}
@media (prefers-color-scheme:dark){:root{--paper:#15181d;--card:#1d2128;--ink:#e7e5df;--faint:#9aa1ac;--line:#333943;
--full:#7db1ee;--bundle:#f2935c;--good:#5fcf9a;--bad:#ff8a80;--none:#e3bf55;--bar:#5b708c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1000px;margin:0 auto;padding:28px 18px 60px}
h1{font-size:1.7rem;margin:0 0 12px;letter-spacing:-.01em}h2{font-size:1.2rem;margin:44px 0 8px}
h3{font-size:.92rem;margin:0 0 8px;font-weight:600}p{margin:6px 0 12px}
.verdict{font-size:1.06rem;padding:12px 16px;border-left:5px solid var(--none);background:var(--card);
border-radius:0 8px 8px 0}
.verdict.good{border-color:var(--good)}.verdict.bad{border-color:var(--bad)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:8px 22px;margin:14px 0}
dt{color:var(--faint);font-size:.8rem}dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-size:.93rem}
th,td{text-align:left;padding:7px 10px 7px 0;border-bottom:1px solid var(--line);vertical-align:top}
.figures td,.figures tr:first-child th{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.figures th{font-weight:500}.figures tr:first-child th:first-child{text-align:left}
.gates td:nth-child(n+2){white-space:nowrap;font-variant-numeric:tabular-nums}
td small{display:block;color:var(--faint);max-width:52ch}th{color:var(--faint);font-weight:500}
.good{color:var(--good)}.bad{color:var(--bad)}.none{color:var(--none)}p.verdict{color:var(--ink)}
td.good,td.bad,td.none{font-weight:600}
.faint,.note{color:var(--faint)}.note{font-size:.88rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:16px;margin-top:16px}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 14px 10px}
details pre{overflow-x:auto;font-size:.75rem}
figcaption{color:var(--faint);font-size:.82rem;margin-top:4px}
svg{display:block;width:100%;height:auto;font-family:inherit}
.film,.times{display:grid;grid-template-columns:minmax(74px,110px) repeat(var(--n),minmax(0,1fr));gap:6px;margin:6px 0;
align-items:center}
.film b{font-weight:500;font-size:.84rem;line-height:1.25}
.film.full b{color:var(--full)}.film.compressed b{color:var(--bundle)}
.film img{width:100%;image-rendering:pixelated;border-radius:5px;display:block}
.times span{color:var(--faint);font-size:.78rem;text-align:center}
.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--faint);fill:none;stroke-width:1}
.tick{fill:var(--faint);font-size:11px}.label{fill:var(--ink);font-size:12px}.label.faint{fill:var(--faint)}
.bar{fill:var(--bar)}.mark{stroke-width:1.5}.mark.quantile{stroke:var(--full)}.label.quantile{fill:var(--full)}
.mark.deadline{stroke:var(--bad);stroke-dasharray:5 3}.label.deadline{fill:var(--bad)}
.even{stroke:var(--faint);stroke-dasharray:3 3}.dot{fill-opacity:.75}
.part0{fill:var(--bar);background:var(--bar)}.part1{fill:var(--full);background:var(--full)}
.part2{fill:var(--bundle);background:var(--bundle)}
.key{display:inline-block;width:9px;height:9px;border-radius:50%;margin:0 3px 0 10px}
h3.suite{font-size:1.02rem;margin:30px 0 4px}.key.full{background:var(--full)}.key.compressed{background:var(--bundle)}
.curve.real{stroke:var(--faint)}.end.real,.label.real{fill:var(--faint)}
.curve{fill:none;stroke-width:2.5;stroke-linecap:round}.curve.full{stroke:var(--full)}.curve.compressed{stroke:var(--bundle)}
.end.full,.label.full{fill:var(--full)}.end.compressed,.label.compressed{fill:var(--bundle)}
.findings{margin:6px 0 14px;padding-left:20px;font-size:.93rem}.findings li{margin:3px 0}.findings b{color:var(--bad)}
.bar.missed{fill:var(--bad)}.curve.roof{stroke:var(--faint);stroke-width:1.5}
.flame0{fill:var(--line)}.flame1{fill:var(--full);fill-opacity:.35}.flame2{fill:var(--full);fill-opacity:.2}
.flame3{fill:var(--bundle);fill-opacity:.4}.flame4{fill:var(--bundle);fill-opacity:.22}
code{overflow-wrap:anywhere;font-size:.85em}
@media (max-width:520px){.film,.times{grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:3px}
.film b{grid-column:1/-1}.times b{display:none}.figures{font-size:.78rem}td small{max-width:none}
.figures th,.figures td{padding-right:6px}main{padding-top:18px}}
"""
