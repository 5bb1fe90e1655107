"""How pages look: those of a run and of a corpus."""

STYLE = """
:root{color-scheme:light dark;--page:#f7f7f5;--card:#fff;--line:#e2e2de;--text:#222;--soft:#666;--good:#174;--warn:#a50}
@media screen and (prefers-color-scheme:dark){:root{--page:#101215;--card:#181b20;--line:#2c3038;--text:#e6e7ea;
--soft:#9aa0aa;--good:#5dc894;--warn:#f0a75a}}*{box-sizing:border-box}h1,pre,.fact{overflow-wrap:anywhere}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:auto;padding:2rem 1.25rem 3rem}h2{font-size:1.1rem;margin:2rem 0 .75rem}
h1{font-size:1.75rem;line-height:1.2;margin:0}header p{margin:.4rem 0 0}
small,.soft,.note,footer{color:var(--soft)}.note,footer{font-size:.8rem;margin:1.8rem 0 0}
.badge{font-size:.8rem;border:1px solid;border-radius:1rem;padding:.15rem .7rem;vertical-align:middle;color:var(--warn)}
.good{color:var(--good)}.card,figure,.sheet{background:var(--card);border:1px solid var(--line);border-radius:.6rem}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:.75rem;margin:1.5rem 0 0}
.card{padding:.7rem .9rem;margin:0}.card dt,.card dd+dd{color:var(--soft);font-size:.78rem}.card dd{margin:0}
.card dt+dd{font-size:1.4rem;font-weight:600;white-space:nowrap}b,td,.card{font-variant-numeric:tabular-nums}
.sheet{padding:.3rem 1rem;overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}
tr+tr>*,thead+tbody>tr>*{border-top:1px solid var(--line)}.fact{display:inline-block;margin-right:1.1rem}
th,td{padding:.4rem 1rem .4rem 0;text-align:left;vertical-align:top}th{color:var(--soft);font-weight:400}
.confusion td{text-align:center;padding:.35rem .5rem}
details{margin:.6rem 0}summary{cursor:pointer}mark{background:none;color:var(--c0)}
pre{font:.82rem/1.5 ui-monospace,monospace;white-space:pre-wrap;margin:.6rem 0}
@media(max-width:700px){main{padding:1.25rem .8rem}.cards{grid-template-columns:1fr 1fr}}
@media print{body{background:#fff}main{padding:0;max-width:none}h2{break-after:avoid}figure,tr{break-inside:avoid}}
"""
