"""How the page of a report looks, and what moves in it."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5d6675;--paper:#f6f7f9;--card:#fff;--line:#e1e5eb;--mark:#fff4d6}
@media (prefers-color-scheme:dark){
:root{--ink:#e6e9ef;--soft:#9aa4b2;--paper:#12161d;--card:#1a2029;--line:#2c3541;--mark:#3a3113}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1180px;padding:24px 20px 60px;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:26px;margin:0 0 4px;letter-spacing:-.01em}h2{font-size:18px;margin:36px 0 12px}
h3{font-size:15px;margin:0 0 6px;display:flex;gap:10px;align-items:center;flex-wrap:wrap}
p{margin:4px 0}header p{color:var(--soft)}
.chip{display:inline-flex;align-items:center;gap:7px;font-weight:600}
.chip i{width:11px;height:11px;border-radius:3px;flex:none}
.cards,.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.card,figure,.look,.wide{background:var(--card);border:1px solid var(--line);border-radius:12px;margin:0}
.card,figure,.look{padding:14px 16px}.wide{margin-bottom:14px}
.looks{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr))}
em{font-style:normal;font-size:12px;font-weight:600;padding:1px 9px;border-radius:99px;background:var(--line)}
em.finished{background:#3ca95130;color:#2b8a3e}em.goes-on{background:#4269d030;color:#3d63c8}
em.failed,em.killed{background:#ff725c30;color:#d0402a}em.stopped{background:#efb11830;color:#9a6f00}
@media (prefers-color-scheme:dark){em.finished{color:#6fd07f}em.goes-on{color:#93adf0}
em.failed,em.killed{color:#ff9b8a}em.stopped{color:#f3c558}}
meter{width:100%;height:10px}
.numbers{display:flex;gap:22px;flex-wrap:wrap;margin:8px 0}
.numbers b{display:block;font-size:20px;font-variant-numeric:tabular-nums;line-height:1.2}
.numbers .few b{font-size:14px;font-weight:500;color:var(--soft)}.numbers div{max-width:230px}
.numbers span,dt,small,summary,figcaption,output{color:var(--soft);font-size:13px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 12px;margin:8px 0;font-size:14px}
dd,dt{margin:0}dt{line-height:21px}
figure{min-width:0}figcaption{font-weight:600;color:var(--ink);margin-bottom:6px}.chart{width:100%}
.warned{background:var(--mark);border-radius:8px;padding:6px 10px;font-size:13px}
code{display:block;font:12px/1.45 ui-monospace,Menlo,Consolas,monospace;background:var(--paper);border-radius:8px;
padding:6px 8px;margin:4px 0 8px}
details{margin-top:8px}summary{cursor:pointer;margin-bottom:8px}ol,ul{margin:4px 0;padding-left:20px;font-size:13px}
.look img{width:100%;max-width:760px;display:block;border-radius:6px;background:#fff}
.look label{display:flex;gap:12px;align-items:center;margin-bottom:10px;flex-wrap:wrap}
input[type=range]{flex:1 1 200px;max-width:560px;accent-color:#4269d0;min-height:28px}
output{font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13px;overflow-wrap:normal}
th,td{text-align:left;padding:6px 16px;border-bottom:1px solid var(--line);vertical-align:top}
tbody th{font-weight:500;color:var(--soft);white-space:nowrap}td{max-width:340px;overflow-wrap:anywhere;min-width:110px}
td small{display:block;font-size:11px}tr:last-child>*{border-bottom:0}td.other{background:var(--mark)}
#vg-tooltip-element{font:12px system-ui,sans-serif}
@media (max-width:600px){body{padding:16px 12px 40px}h1{font-size:22px}th,td{padding:6px 10px}
dl{grid-template-columns:1fr}dt{margin-top:4px;line-height:1.3}}
"""

SCRIPT = """
const specs = JSON.parse(document.getElementById("specs").textContent);
document.querySelectorAll(".chart").forEach(place => {
  const options = {actions: false, renderer: "svg", mode: "vega-lite"};
  vegaEmbed(place, specs[place.dataset.n], options).catch(error => console.error(error));
});
document.querySelectorAll(".look").forEach(look => {
  const frames = JSON.parse(look.querySelector("script").textContent);
  const [knob, label, image] = ["input", "output", "img"].map(name => look.querySelector(name));
  knob.addEventListener("input", () => {
    label.textContent = frames[knob.value].label;
    image.src = frames[knob.value].src;
  });
});
"""
