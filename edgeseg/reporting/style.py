"""The page's style: both colour schemes, a phone's width, a sheet of paper."""

from typing import Final

__all__ = ["STYLE"]

STYLE: Final = """
:root {
  color-scheme: light dark;
  --back: #f6f7f9; --card: #ffffff; --ink: #16191f; --dim: #59616e; --edge: #d3d8e0;
  --accent: #0b5fb0; --bad: #b3151f; --guess: #7a4a00; --guess-back: #fff6e5;
  --s0: #0072b2; --s1: #b34700; --s2: #00785a; --s3: #9a4c7d;
  --s4: #6a5acd; --s5: #8a5200; --s6: #3f6b12; --s7: #59616e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --back: #101319; --card: #1a1f28; --ink: #e9edf3; --dim: #a3adbb; --edge: #343c49;
    --accent: #6db3f5; --bad: #ff7b7f; --guess: #f0b357; --guess-back: #2b2416;
    --s0: #56b4e9; --s1: #f08a4b; --s2: #3fc79a; --s3: #dd92c4;
    --s4: #a99cf5; --s5: #f0b357; --s6: #9ccc5c; --s7: #a3adbb;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 84rem; padding: 0.75rem clamp(0.75rem, 2vw, 1.5rem) 2rem;
  background: var(--back); color: var(--ink);
  font: 1rem/1.45 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 0.5rem; background: var(--card); padding: 0.5rem; }
h1 { font-size: 1.4rem; margin: 0.3rem 0; }
h2 { font-size: 1.15rem; margin: 0 0 0.5rem; }
h3 { font-size: 1rem; margin: 1rem 0 0.3rem; overflow-wrap: anywhere; }
p { margin: 0 0 0.6rem; max-width: 75ch; overflow-wrap: anywhere; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; list-style: none; padding: 0;
  margin: 0 0 0.75rem; }
nav a { display: inline-block; padding: 0.35rem 0; }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 0.6rem;
  padding: 0.8rem clamp(0.6rem, 2vw, 1.1rem); margin: 0 0 1rem; }
.none, small, .note, caption, footer { color: var(--dim); }
.note { font-size: 0.85rem; margin: 0.3rem 0 0; }
code { font-size: 0.9em; overflow-wrap: anywhere; color: var(--ink); }
.bad { color: var(--bad); font-weight: 600; }
.guess { color: var(--guess); font-weight: 600; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; max-width: 100%; margin: 0.3rem 0 0.8rem; position: relative; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0.2rem 0; font-size: 0.85rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem 0.3rem 0.3rem;
  border-bottom: 1px solid var(--edge); }
th { font-weight: 600; }
tbody th { position: sticky; left: 0; background: var(--card); min-width: 6.2rem; max-width: 38vw;
  overflow-wrap: break-word; }
td { max-width: 26rem; min-width: 3.2rem; }
thead th { min-width: 3.2rem; }
th small { font-weight: 400; }
.r { text-align: right; }
td.r { white-space: nowrap; }
td:not(.r) { min-width: 5.5rem; }
td > div { min-width: 10rem; border-left: 4px solid var(--s0); padding: 0 0 0 0.45rem;
  margin-bottom: 0.35rem; }
td > div.estimated { border-left: 4px dotted var(--guess); background: var(--guess-back); }
tr.estimated > * { background: var(--guess-back); font-style: italic; }
summary { cursor: pointer; font-weight: 600; padding: 0.45rem 0; }
.charts, .frames { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.charts + p { margin-top: 0.8rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure > figcaption { font-weight: 600; font-size: 0.95rem; overflow-wrap: anywhere; }
.frames figcaption { font-weight: 400; color: var(--dim); font-size: 0.85rem; }
.frames img { display: block; width: 100%; height: auto; margin-bottom: 0.25rem; }
.chart { display: block; width: 100%; max-width: 32rem; height: auto; }
svg text { fill: var(--ink); font-size: 12px; }
svg .tick { fill: var(--dim); }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
svg .label { paint-order: stroke; stroke: var(--card); stroke-width: 3px; font-size: 11.5px; }
.grid { stroke: var(--edge); stroke-width: 0.7; } .axis { stroke: var(--dim); }
.line { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.mark { fill: currentColor; stroke: var(--card); stroke-width: 0.8; }
.mark .stroke, .mark .range, .mark .level { stroke: currentColor; stroke-width: 2; }
.mark .range { stroke-width: 1.2; stroke-dasharray: 3 2; }
.mark .level { stroke: var(--ink); stroke-width: 1.2; }
.mark .bar { fill-opacity: 0.45; stroke: currentColor; }
.mark.hollow > :not(.range, .stroke, .level) { fill: var(--card); fill-opacity: 0.6;
  stroke: currentColor; stroke-width: 1.5; stroke-dasharray: 3 1.5; }
.limit { stroke: var(--bad); stroke-width: 2; stroke-dasharray: 3 2; }
.c0 { color: var(--s0); } .c1 { color: var(--s1); } .c2 { color: var(--s2); }
.c3 { color: var(--s3); } .c4 { color: var(--s4); } .c5 { color: var(--s5); }
.c6 { color: var(--s6); } .c7 { color: var(--s7); } .c-dim { color: var(--dim); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.1rem 0.9rem; padding: 0;
  margin: 0.3rem 0 0; font-size: 0.85rem; }
.legend li { display: flex; align-items: flex-start; gap: 0.35rem; }
.legend svg { flex: none; margin-top: 0.25rem; }
.files { columns: 24rem; padding-left: 1.2rem; overflow-wrap: anywhere; font-size: 0.9rem; }
@media (forced-colors: active) { .mark, .line { forced-color-adjust: none; } }
@media print {
  :root { color-scheme: light; }
  body { max-width: none; padding: 0; background: none; font-size: 9.5pt; }
  nav, .skip { display: none; }
  section { border: 0; padding: 0; break-before: auto; }
  h2, h3, figcaption { break-after: avoid; }
  tr, figure { break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  tbody th { position: static; max-width: none; }
  td > div { min-width: 0; }
  .charts, .frames { grid-template-columns: 1fr 1fr; }
  details:not([open]) { display: none; }
  * { print-color-adjust: exact; }
}
"""
