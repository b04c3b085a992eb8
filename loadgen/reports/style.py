"""The page's looks.

Owns colours, type and layout. Must never ask for anything from a network. The curves' colours are Okabe and Ito's
("Color universal design", 2008), which the colour-blind tell apart, darkened or lightened for the ground they are on.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fff; --panel: #f6f7f9; --ink: #1a1f26; --soft: #586372; --rule: #dde2e8; --grid: #e8ebef;
  --heat: #08519c; --good: #00664b; --good-ground: #e3f4ee; --bad: #a3260f; --bad-ground: #fdece7;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b9558f;
  --c4: #c98500; --c5: #3a9bd8; --c6: #6b6f76; --c7: #7a4fb5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171c; --panel: #1c2027; --ink: #e7eaee; --soft: #9da7b4; --rule: #323942; --grid: #272d36;
    --heat: #7cc4ff; --good: #5fd3ac; --good-ground: #12302a; --bad: #ff9a83; --bad-ground: #3a1d17;
    --c0: #56b4e9; --c1: #ff8b3d; --c2: #2ec79a; --c3: #e39ac6;
    --c4: #f0b93a; --c5: #8ecbff; --c6: #a5abb3; --c7: #b797ea;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 78rem; margin: 0 auto; padding: clamp(1rem, 3vw, 2.5rem) clamp(.9rem, 3vw, 2rem) 4rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; letter-spacing: -.015em; margin: 0 0 .3rem; }
h2 {
  font-size: 1.25rem; letter-spacing: -.01em; margin: 3rem 0 .4rem; padding-top: 1.2rem;
  border-top: 1px solid var(--rule);
}
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
h1, h2, h3, p, li, dd, td, th { overflow-wrap: anywhere; }
p { margin: .3rem 0 .8rem; max-width: 58rem; }
p.soft, .soft { color: var(--soft); }
.brand {
  color: var(--soft); font-size: .8rem; letter-spacing: .08em; text-transform: uppercase; margin: 0 0 .8rem;
}
.warning {
  background: var(--bad-ground); border-left: 4px solid var(--bad); padding: .6rem 1rem;
  border-radius: 0 6px 6px 0; margin: 1rem 0;
}
.warning ul { margin: .2rem 0; padding-left: 1.1rem; }

.runs {
  display: grid; gap: 1rem; margin: 1.4rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(16rem, 100%), 1fr));
}
.run { background: var(--panel); border-radius: 10px; padding: 1rem 1.2rem; }
.run h3 { margin: 0 0 .6rem; display: flex; gap: .5rem; align-items: center; }
.tiles {
  display: grid; gap: .8rem 1.2rem; margin: 0; grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr));
}
.tiles dt { color: var(--soft); font-size: .78rem; }
.tiles dd { margin: 0; font-size: 1.35rem; font-weight: 600; letter-spacing: -.01em; line-height: 1.25; }
.tiles dd small { font-size: .8rem; font-weight: 400; color: var(--soft); letter-spacing: 0; }

.plots {
  display: grid; gap: 1.8rem 2.2rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr));
}
.plots.three { grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
.columns {
  display: grid; gap: 0 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr));
  align-items: start;
}
.columns table { width: 100%; }
.events { font-size: .9rem; padding-left: 1.4rem; margin: .4rem 0; }
figure { margin: 0; min-width: 0; max-width: 36rem; }
figcaption { font-weight: 600; margin-bottom: .1rem; }
figcaption span { display: block; font-weight: 400; font-size: .85rem; color: var(--soft); }
figure > svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12.5px; fill: var(--soft); }
@media (min-width: 62rem) { .plots:not(.three) svg text, section > figure svg text { font-size: 9.5px; } }
svg .name { fill: var(--ink); }
.grid { stroke: var(--grid); }
.tick { stroke: var(--soft); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dashed { stroke-dasharray: 5 4; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } .c6 { stroke: var(--c6); } .c7 { stroke: var(--c7); }
.dot { stroke-width: 5; stroke-linecap: round; fill: none; }
.mark line { stroke: var(--soft); stroke-dasharray: 2 3; }
.mark text { fill: var(--ink); font-weight: 600; }
.hints rect { fill: var(--ink); fill-opacity: 0; }
.hints rect:hover { fill-opacity: .07; }
.heat rect { fill: var(--heat); }
.heat rect:hover { stroke: var(--ink); stroke-width: 1; }
.ground { fill: var(--panel); }
.legend {
  display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; list-style: none; margin: .1rem 0 .3rem; padding: 0;
  font-size: .85rem; color: var(--soft); align-items: center;
}
.legend li { display: flex; gap: .4rem; align-items: center; }
.sample { width: 22px; height: 10px; flex: none; }
.scale { width: 120px; height: 10px; margin: 0 .2rem; }

.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; margin: .4rem 0 .8rem; }
th, td {
  padding: .28rem .8rem; border-bottom: 1px solid var(--grid); text-align: right; vertical-align: baseline;
  overflow-wrap: normal;
}
td { white-space: nowrap; }
thead th { border-bottom: 1px solid var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child {
  text-align: left; padding-left: 0; font-weight: 400; position: sticky; left: 0; background: var(--ground);
}
thead th:first-child { font-weight: 600; }
tbody th[colspan] { font-weight: 600; padding-top: 1rem; color: var(--soft); }
td.best { font-weight: 700; color: var(--good); }
td.worse { font-weight: 700; color: var(--bad); }
td.words { text-align: left; white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
details { margin: .3rem 0 .6rem; font-size: .9rem; }
summary { cursor: pointer; color: var(--soft); font-size: .85rem; width: fit-content; }
summary:hover { color: var(--ink); }
details .wide { max-height: 24rem; overflow: auto; }
details thead th { position: sticky; top: 0; background: var(--ground); z-index: 1; }
pre {
  background: var(--panel); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
dl.words {
  display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .25rem 1.2rem; font-size: .9rem;
}
dl.words dt { color: var(--soft); }
dl.words dd { margin: 0; }
@media (max-width: 34rem) {
  body { font-size: 15px; }
  th, td { padding: .28rem .5rem; }
  th:first-child { max-width: 9.5rem; }
  .figures th[scope=row] { min-width: 8rem; }
  dl.words { grid-template-columns: 1fr; gap: 0; } dl.words dd { margin-bottom: .6rem; }
}
@media print { figure, .run, tr { break-inside: avoid; } .hints { display: none; } }
"""
