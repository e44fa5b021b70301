"""How the page looks: on a phone, in print, in light and in dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f5f6f8; --ink: #1b1f24; --soft: #59636e;
  --line: #d5d9de; --benign: #5b8c5a; --attack: #0072b2; --worst: #b3401f;
  --warn: #8a4b00; --warn-paper: #fff4e0; --warn-line: #e0a030;
  --part0: #5b8c5a; --part1: #e6a72e; --part2: #56b4e9; --part3: #b3401f;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1e2329; --ink: #e6e9ec; --soft: #9aa4af;
    --line: #363d45; --benign: #6fa86d; --attack: #3f9bd6; --worst: #e07a55;
    --warn: #ffcf80; --warn-paper: #33270f; --warn-line: #a87820;
    --part0: #6fa86d; --part1: #d9a23a; --part2: #5aa9dc; --part3: #d8704d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 68rem; padding: 1.5rem 1.25rem 4rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue',
    Arial, 'Liberation Sans', sans-serif;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
code, pre { font-family: ui-monospace, 'SF Mono', Menlo, Consolas,
  'Liberation Mono', monospace; font-size: .87em; }
.lead { color: var(--soft); overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem;
  margin: .75rem 0; font-size: .93rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.tiles { display: grid; gap: .75rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); }
.tile { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile small { display: block; color: var(--soft); overflow-wrap: anywhere; }
.note { border-left: .3rem solid var(--line); background: var(--card);
  padding: .6rem 1rem; margin: 1rem 0; border-radius: 0 .4rem .4rem 0; }
.note h2 { border: 0; padding: 0; margin: 0; font-size: 1.05rem; }
.note p, .note ul { margin: .35rem 0; }
.warning { border-color: var(--warn-line); background: var(--warn-paper);
  color: var(--warn); }
ul { margin: .5rem 0; padding-left: 1.25rem; }
li { overflow-wrap: anywhere; margin: .15rem 0; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; font-weight: normal; }
tr > :first-child { padding-left: 0; }
tbody th { white-space: nowrap; position: sticky; left: 0;
  background: var(--paper); }
thead th { color: var(--soft); vertical-align: bottom; }
tbody tr:hover, tbody tr:hover th { background: var(--card); }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: .93rem; margin-bottom: .4rem; }
.bars { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr;
  gap: .35rem .9rem; margin: 0; align-items: center; max-width: 54rem; }
.bars dt { overflow-wrap: anywhere; font-size: .92rem; max-width: 16rem; }
.bars dd { margin: 0; display: flex; align-items: center; gap: .75rem; }
.track { position: relative; flex: 1; height: 1.15rem; background: var(--card);
  border-radius: .15rem; }
.bar, .part, .swatch { print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.bar { display: block; height: 100%; border-radius: .15rem; min-width: 1px; }
.benign { background: var(--benign); }
.attack { background: var(--attack); }
.worst { background: var(--worst); }
.whisker { position: absolute; top: 50%; height: .6rem; margin-top: -.3rem;
  border: solid var(--ink); border-width: 0 1.5px; }
.whisker::after { content: ''; position: absolute; left: 0; right: 0; top: 50%;
  border-top: 1.5px solid var(--ink); margin-top: -.75px; }
.value { flex: 0 0 11rem; font-size: .92rem; font-variant-numeric: tabular-nums; }
.parts { display: flex; overflow: hidden; }
.part { height: 100%; box-shadow: inset -1px 0 var(--paper); }
.key { white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-left: .6em;
  border-radius: .15em; }
.part0 { background: var(--part0); } .part1 { background: var(--part1); }
.part2 { background: var(--part2); } .part3 { background: var(--part3); }
.pictures { display: grid; gap: 1rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.pictures figure { margin: .5rem 0; max-width: 36rem; display: flex;
  flex-direction: column; justify-content: space-between; }
.pictures svg { display: block; width: 100%; height: auto;
  stroke-linejoin: round; }
.gallery figure { margin: 1.25rem 0; }
.gallery img { display: block; max-width: 100%; height: auto; }
details { margin: .75rem 0; }
summary { cursor: pointer; }
pre { background: var(--card); padding: .75rem 1rem; border-radius: .4rem;
  overflow-x: auto; line-height: 1.4; }
@media (max-width: 36rem) {
  body { padding: 1rem .9rem 3rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .4rem; }
  .bars { grid-template-columns: 1fr; gap: .1rem; }
  .bars dd { flex-direction: column; align-items: stretch; gap: 0;
    margin-bottom: .5rem; }
  .track { flex: none; }
  .value { flex: none; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile { padding: .6rem .75rem; }
  .tile b { font-size: 1.35rem; }
}
@page { margin: 14mm; }
@media print {
  html { font-size: 11px; }
  body { max-width: none; padding: 0; }
  .tile, .note, .track { border: 1px solid var(--line); }
  .wide { overflow: visible; }
  th, td { padding: .2rem .4rem; }
  .pictures figure, .gallery figure, .tile, .note, tr, dd { break-inside: avoid; }
  dt { break-after: avoid; }
  h2, h3 { break-after: avoid; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
"""
