/* page.c: the report. Without its script all figures stand there; the script lets one choose a head
   and reads a row of its matrix. */
#include "figure.h"
#include "picture.h"
#include "report.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { COLORS = 8 };

/* ---------------------------------------------------------------- style and script */

/* of page and figures */
static const char colors[] =
    ":root{color-scheme:light "
    "dark;--ink:#1f2328;--soft:#57606a;--line:#d9dde2;--axis:#8a929b;--page:#fff;--card:#f6f8fa;"
    "--band:#f0f2f5;--k0:#b0440a;--k1:#57606a;--k2:#1a7f4b;--k3:#8546c4;--k4:#0b62c4;--k5:#a3246b;--k6:#7a6200;--k7:#"
    "00727a}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#a0a8b2;--line:#333941;--axis:#737c87;--page:#14161a;"
    "--card:#1d2026;--band:#1b1e24;--k0:#f4a261;--k1:#a9b2bc;--k2:#5fd39a;--k3:#c79bff;--k4:#6db1ff;--k5:#ff8fc4;--k6:#"
    "e0c341;"
    "--k7:#5fd0d8}}\n"
    "@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#ccc;--axis:#777;--page:#fff;--card:#f4f4f4;"
    "--band:#eee;--k0:#b0440a;--k1:#57606a;--k2:#1a7f4b;--k3:#8546c4;--k4:#0b62c4;--k5:#a3246b;--k6:#7a6200;--k7:#"
    "00727a}}\n";
static const char marks[] =
    "svg .soft{fill:var(--soft)}\n"
    ".line{stroke:var(--line)}.axis{stroke:var(--axis)}.curve{fill:none;stroke:currentColor;stroke-width:2;"
    "stroke-linejoin:round}.thin{fill:none;stroke:currentColor;stroke-width:.8;opacity:.4}.faint{fill:currentColor;"
    "opacity:.16}.whisker,.mean{stroke:currentColor;stroke-width:1.5;fill:none}.mean{stroke-width:2.5}.level{"
    "stroke:var(--axis);stroke-dasharray:2 3}.rate{fill:var(--line)}.band0{fill:var(--band)}.band1{fill:var(--page)}\n"
    ".k0{color:var(--k0)}.k1{color:var(--k1)}.k2{color:var(--k2)}.k3{color:var(--k3)}.k4{color:var(--k4)}"
    ".k5{color:var(--k5)}.k6{color:var(--k6)}.k7{color:var(--k7)}g[class^=k]{fill:currentColor}\n";
static const char style[] =
    "*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:1rem/1.55 "
    "system-ui,sans-serif}\n"
    "main{max-width:66rem;margin:0 auto;padding:1.5rem 1rem 4rem}h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0;"
    "overflow-wrap:anywhere}h2{font-size:1.2rem;margin:2.6rem 0 .4rem}h3{font-size:1rem;margin:1.2rem 0 .3rem}\n"
    "p{max-width:46rem;margin:.5rem 0}.soft,figcaption{color:var(--soft);font-size:.9rem}svg "
    ".soft{font-size:inherit}figure{margin:.6rem 0}figcaption{max-width:46rem;margin-top:.4rem}\n"
    ".verdict{font-size:1.12rem}.banner{border:2px solid var(--k4);border-radius:.4rem;padding:.5rem .8rem}\n"
    ".scroll{overflow-x:auto}.scroll:focus-visible,canvas:focus-visible{outline:2px solid "
    "var(--k4);outline-offset:2px}\n"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.4rem "
    "0;width:100%}caption{text-align:left;"
    "color:var(--soft);font-size:.9rem}th,td{padding:.35rem .5rem;border-bottom:1px solid var(--line);text-align:right;"
    "vertical-align:top}thead "
    "th{vertical-align:bottom}th{font-weight:600}th:first-child{text-align:left;padding-left:0}"
    "td small{color:var(--soft);white-space:nowrap}tr.best>*{background:var(--card)}\n"
    "th[scope=row]{font-weight:400}tr.best th{font-weight:600}\n"
    ".grid{display:grid;gap:1.2rem "
    "2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));margin:.6rem 0}"
    ".grid>*{margin:0;min-width:0}.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,13rem),1fr))}"
    ".three>*{max-width:26rem}.heats{gap:.2rem "
    "1.2rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,14rem),1fr))}\n"
    "svg{display:block;width:100%;height:auto}.legend{max-width:24rem}.wide{max-width:60rem}.narrow{display:none}"
    ".dots{max-width:36rem}@media(max-width:40rem){.wide{display:none}.narrow{display:block}}\n"
    ".heat{width:auto;border-spacing:0}.heat td{min-width:2.4rem;text-align:center;border:1px solid "
    "var(--page);padding:.3rem "
    ".2rem}.heat .tiny{min-width:.5rem;width:.8rem;height:.8rem;padding:0}.heat th{white-space:nowrap;"
    "font-weight:400;color:var(--soft);"
    "text-align:center;border:0;padding:.2rem .3rem}.over{background-image:repeating-linear-gradient(45deg,transparent "
    "0 4px,"
    "rgba(255,255,255,.28) 4px 6px)}.heat td.over b{background:#0b2d5c}.heat td b{font-weight:400}td.on{outline:3px "
    "solid "
    "var(--k0);outline-offset:-3px}.key{display:inline-block;width:1.4rem;height:.9rem;vertical-align:-.1rem}\n"
    "dl{margin:.6rem 0;display:grid;gap:.2rem 1rem;grid-template-columns:minmax(7rem,12rem) "
    "minmax(0,1fr)}dt{font-weight:"
    "600}dd{margin:0 0 .7rem;max-width:46rem;overflow-wrap:anywhere}\n"
    "pre{background:var(--card);padding:.8rem;border-radius:.4rem;white-space:pre-wrap;overflow-wrap:anywhere;font-"
    "size:.88rem}"
    "code{font-size:.92em;overflow-wrap:anywhere}\n"
    ".pick{display:flex;flex-wrap:wrap;gap:.6rem 1.6rem;align-items:center}.pick label{display:inline-flex;gap:.4rem;"
    "align-items:center;min-height:2.6rem}.pick fieldset{border:0;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:0 "
    "1rem}"
    ".pick legend{float:left;margin-right:.6rem;line-height:2.6rem}.pick "
    "input[type=range]{width:9rem;min-height:2.6rem}"
    "select{font:inherit;min-height:2.6rem}[hidden]{display:none!important}\n"
    "canvas{display:block;width:100%;aspect-ratio:1;image-rendering:pixelated;touch-action:pan-y}.js "
    ".still,.fixed{display:none}"
    "#say{min-height:3.2rem}#say b{background:var(--ink);color:var(--page);padding:0 .15em}\n"
    "@media(max-width:40rem){dl{grid-template-columns:minmax(0,1fr)}.heats{grid-template-columns:repeat(auto-fill,"
    "minmax(11rem,1fr))}"
    ".heat td{min-width:1.9rem;font-size:.8rem}.heat th{font-size:.8rem}.cards,.cards caption,.cards tbody,.cards "
    "tr,.cards th,.cards td{"
    "display:block;text-align:left;border:0;padding:.05rem 0}.cards thead{display:none}.cards tr{border-bottom:1px "
    "solid "
    "var(--line);padding:.5rem 0}.cards td::before{content:attr(data-label) ': ';color:var(--soft)}.cards "
    "td{display:inline-block;margin-right:1rem}.cards td:empty{display:none}"
    ".cards tr.best{padding-left:.4rem;border-left:3px solid var(--k0)}}\n"
    "@media(forced-colors:active){.heat td,.key,.band0,.band1,.rate,canvas{forced-color-adjust:none}.heat "
    "td.on{outline-color:"
    "Highlight}.verdict,.banner{border-color:CanvasText}tr.best th{text-decoration:underline}}\n"
    "@media print{body{font-size:10pt}main{max-width:none;padding:0}.scroll{overflow:visible}figure,svg,tr,dd,.heatbox{"
    "break-inside:avoid}h2,h3{break-after:avoid}.pick,#say{display:none}.fixed{display:grid}.js .still{display:grid}"
    ".grid{grid-template-columns:1fr 1fr}.heats{gap:.2rem .5rem}.three,.heats{grid-template-columns:repeat(4,1fr)}"
    ".fixed>div,.still>div{break-inside:avoid}*{print-color-adjust:exact;"
    "-webkit-print-color-adjust:exact}.heat td,.heat th{min-width:0;font-size:8pt;padding:.12rem}"
    "th,td{padding:.2rem .3rem}}\n";

/* what the reader chose is kept in the address, for a page that is written anew while a run goes
   on */
static const char script[] =
    "(()=>{'use strict';\n"
    "const D=JSON.parse(document.getElementById('data').textContent),$=i=>document.getElementById(i),"
    "bytes=s=>Uint8Array.from(atob(s),c=>c.charCodeAt(0));\n"
    "if(D.live){try{const y=sessionStorage.getItem('y');if(y)scrollTo(0,+y);addEventListener('scroll',()=>"
    "sessionStorage.setItem('y',scrollY))}catch(e){}}\n"
    "if(!D.runs.length)return;\n"
    "document.documentElement.classList.add('js');\n"
    "const names={start:'start',stage1:'stage 1',stage2:'stage 2',stage3:'stage "
    "3'},P=D.colors.map(c=>[1,3,5].map(i=>parseInt("
    "c.slice(i,i+2),16))),value=b=>{const u=(b-127)/127;return "
    "u<0?-u*u:u*u},index=v=>Math.max(0,Math.min(254,127+Math.round("
    "127*Math.sign(v)*Math.sqrt(Math.abs(v)))));\n"
    "const S={r:0,l:D.at[0],h:D.at[1],m:'',row:-1};\n"
    "for(const p of location.hash.slice(1).split('&')){const[k,v]=p.split('=');if(k==='m')S.m=v;else "
    "if('rlh'.includes(k)&&k)"
    "S[k]=+v||0}\n"
    "const inLayer=R=>R.picks.filter(i=>Math.floor(i/R.heads)===S.l).map(i=>i%R.heads);\n"
    "let A,B,T,R;\n"
    "const tri=(i,j)=>i*(i+1)/2+j;\n"
    "function paint(id,at){const c=$(id),g=c.getContext('2d'),d=g.createImageData(T,T);c.width=c.height=T;"
    "for(let i=0;i<T;i++)for(let j=0;j<=i;j++){const p=P[index(at(tri(i,j)))];d.data.set([...p,255],4*(i*T+j))}"
    "g.putImageData(d,0,0);if(S.row>=0){g.fillStyle='rgba(255,255,255,.35)';g.fillRect(S.row+1,S.row,T-S.row-1,1)}}\n"
    "const word=i=>JSON.stringify(R.text[i]).slice(1,-1).replace(/\\\\\"/g,'\"')||'?';\n"
    "function say(){const s=$('say');s.textContent='';if(S.row<0){s.textContent='Point at a row, or press the arrow "
    "keys on a "
    "matrix, to read what that token mixes.';return}\n"
    "const add=(t,e)=>{const n=document.createElement(e||'span');n.textContent=t;s.append(n)};"
    "add(`Row ${S.row}: `);for(let i=Math.max(0,S.row-8);i<S.row;i++)add(word(i));add(word(S.row),'b');"
    "for(const[n,M]of[['teacher',A],['student',B]]){const w=[];for(let "
    "j=0;j<=S.row;j++)w.push([value(M[tri(S.row,j)]),j]);"
    "w.sort((a,b)=>Math.abs(b[0])-Math.abs(a[0]));add(` ${n} reads "
    "`+w.slice(0,4).map(([v,j])=>`\\u201c${word(j)}\\u201d (${j}) "
    "${v.toFixed(2)}`).join(', ')+'.')}}\n"
    "function draw(){R=D.runs[S.r=Math.max(0,Math.min(D.runs.length-1,S.r))];T=R.T;"
    "S.l=Math.max(0,Math.min(R.layers-1,S.l));const hs=inLayer(R);if(!hs.includes(S.h))S.h=hs[0];"
    "const ms=Object.keys(R.m);if(!ms.includes(S.m))S.m=ms[ms.length-1];\n"
    "const n=T*(T+1)/2,k=R.picks.indexOf(S.l*R.heads+S.h)*n;R.raw=R.raw||{};const "
    "raw=(o,s)=>R.raw[o]=R.raw[o]||bytes(s);"
    "A=raw('teacher',R.teacher||D.runs[0].teacher).subarray(k,k+n);B=raw(S.m,R.m[S.m]).subarray(k,k+n);\n"
    "$('layer').max=R.layers-1;$('layer').value=S.l;$('head').max=hs.length-1;$('head').value=hs.indexOf(S.h);"
    "$('layer-is').textContent=S.l;$('head-is').textContent=S.h;\n"
    "const f=$('moments');f.querySelectorAll('label').forEach(e=>e.remove());for(const m of ms){const "
    "l=document.createElement("
    "'label'),i=document.createElement('input');i.type='radio';i.name='moment';i.value=m;i.checked=m===S.m;i.onchange=("
    ")=>{S.m=m;"
    "go();$('moments').querySelector('input:checked').focus()};l.append(i,names[m]);f.append(l)}\n"
    "paint('c0',i=>value(A[i]));paint('c1',i=>value(B[i]));paint('c2',i=>value(B[i])-value(A[i]));\n"
    "const e=R.error[S.m][R.picks.indexOf(S.l*R.heads+S.h)],t=`layer ${S.l}, head ${S.h}`;"
    "$('which').textContent=`${R.name}, ${t}, ${S.m==='start'?'before training':'after '+names[S.m]}: relative error "
    "${e.toFixed(2)}${S.l===D.at[0]&&S.h===D.at[1]&&S.r===0?' (the median head)':''}`;\n"
    "['teacher','student','student \\u2212 teacher'].forEach((n,i)=>$('c'+i).setAttribute('aria-label',`mixing matrix "
    "of ${t}, "
    "${n}; arrow keys choose a row`));\n"
    "document.querySelectorAll('td.on').forEach(x=>x.classList.remove('on'));document.querySelectorAll(`td[data-h=\"${"
    "S.r}.${S.l}."
    "${S.h}\"]`).forEach(x=>x.classList.add('on'));say()}\n"
    "function go(){draw();history.replaceState(null,'',`#r=${S.r}&l=${S.l}&h=${S.h}&m=${S.m}`)}\n"
    "$('layer').oninput=e=>{S.l=+e.target.value;go()};$('head').oninput=e=>{S.h=inLayer(R)[+e.target.value];go()};\n"
    "if($('run'))$('run').onchange=e=>{S.r=+e.target.value;go()};\n"
    "document.querySelectorAll('td[data-h]').forEach(x=>x.onclick=()=>{const[r,l,h]=x.dataset.h.split('.').map(Number);"
    "if(D.runs[r].picks.includes(l*D.runs[r].heads+h)){Object.assign(S,{r,l,h,m:x.dataset.m});if($('run'))$('run')."
    "value=r;go()}});\n"
    "for(const id of['c0','c1','c2']){const c=$(id);c.onpointermove=e=>{const y=Math.floor(e.offsetY/c.clientHeight*T);"
    "if(y!==S.row&&y>=0&&y<T){S.row=y;draw()}};c.onpointerleave=()=>{S.row=-1;draw()};c.onkeydown=e=>{const "
    "d={ArrowDown:1,"
    "ArrowUp:-1}[e.key],h={ArrowRight:1,ArrowLeft:-1}[e.key];if(d)S.row=Math.max(0,Math.min(T-1,S.row+d));else "
    "if(h){const hs="
    "inLayer(R);S.h=hs[(hs.indexOf(S.h)+h+hs.length)%hs.length]}else return;e.preventDefault();go()}}\n"
    "$('pick').hidden=false;if($('run'))$('run').value=S.r;draw();\n"
    "})();";

/* ---------------------------------------------------------------- SHA-256 of the script */

static uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

/* the first 32 bits of the fractional part of a root of the prime p */
static uint32_t fraction(int p, int cube) {
  const double root = cube ? cbrt((double)p) : sqrt((double)p);
  return (uint32_t)((root - floor(root)) * 4294967296.0);
}

static void sha256_block(uint32_t h[8], const unsigned char *p, const uint32_t k[64]) {
  uint32_t w[64], s[8];
  int i;
  memcpy(s, h, sizeof s);
  for (i = 0; i < 64; i++) {
    if (i < 16) {
      w[i] = (uint32_t)p[4 * i] << 24 | (uint32_t)p[4 * i + 1] << 16 | (uint32_t)p[4 * i + 2] << 8 | p[4 * i + 3];
    } else {
      const uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + w[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
    }
  }
  for (i = 0; i < 64; i++) {
    const uint32_t a = s[0], e = s[4];
    const uint32_t t1 = s[7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & s[5]) ^ (~e & s[6])) + k[i] + w[i];
    const uint32_t t2 = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
    memmove(s + 1, s, 7 * sizeof *s);
    s[4] += t1;
    s[0] = t1 + t2;
  }
  for (i = 0; i < 8; i++) h[i] += s[i];
}

static void sha256(const char *text, size_t n, unsigned char out[32]) {
  uint32_t k[64], h[8];
  unsigned char last[128] = {0};
  const size_t whole = n / 64 * 64, rest = n - whole, end = rest < 56 ? 64 : 128;
  size_t i;
  int p, found = 0;
  for (p = 2; found < 64; p++) {
    int d = 2;
    while (d * d <= p && p % d) d++;
    if (d * d <= p) continue;
    if (found < 8) h[found] = fraction(p, 0);
    k[found++] = fraction(p, 1);
  }
  for (i = 0; i < whole; i += 64) sha256_block(h, (const unsigned char *)text + i, k);
  memcpy(last, text + whole, rest);
  last[rest] = 0x80;
  for (i = 0; i < 8; i++) last[end - 1 - i] = (unsigned char)((uint64_t)n * 8 >> (8 * i));
  for (i = 0; i < end; i += 64) sha256_block(h, last + i, k);
  for (i = 0; i < 32; i++) out[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

/* ---------------------------------------------------------------- text */

/* bytes of a whole character at p, 0: it is none */
static size_t character(const unsigned char *p, size_t n) {
  const size_t size = p[0] < 0x80                   ? 1
                      : p[0] >= 0xC2 && p[0] < 0xE0 ? 2
                      : (p[0] & 0xF0) == 0xE0       ? 3
                      : p[0] >= 0xF0 && p[0] < 0xF5 ? 4
                                                    : 0;
  size_t i;
  if (size == 0 || size > n) return 0;
  for (i = 1; i < size; i++)
    if ((p[i] & 0xC0) != 0x80) return 0;
  if (size == 3 && ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] >= 0xA0))) return 0;
  if (size == 4 && ((p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] >= 0x90))) return 0;
  return size;
}

/* Text from a file, whatever it holds, for HTML or for a string of JSON in it. */
static void put_some(FILE *f, const char *text, size_t n, int json) {
  const unsigned char *p = (const unsigned char *)text;
  size_t i, size;
  for (i = 0; i < n; i += size ? size : 1) {
    size = character(p + i, n - i);
    if (size == 0 || (p[i] < 0x20 && p[i] != '\n' && p[i] != '\t') || p[i] == 0x7F)
      fputs(json ? "\\ufffd" : "&#xfffd;", f);
    else if (json && (p[i] < 0x20 || strchr("\"\\<>&", p[i]))) fprintf(f, "\\u%04x", p[i]);
    else if (!json && p[i] == '<') fputs("&lt;", f);
    else if (!json && p[i] == '>') fputs("&gt;", f);
    else if (!json && p[i] == '&') fputs("&amp;", f);
    else if (!json && p[i] == '"') fputs("&quot;", f);
    else fwrite(p + i, 1, size, f);
  }
}

static void put(FILE *f, const char *text) { put_some(f, text, strlen(text), 0); }

/* what was sampled, up to its last whole word */
static void put_sample(FILE *f, const char *text) {
  size_t n = strlen(text), k = n;
  while (k > 0 && !strchr(" \n", text[k - 1])) k--;
  while (k > 0 && strchr(" \n", text[k - 1])) k--;
  put_some(f, text, k ? k : n, 0);
  fputs("&hellip;", f);
}

/* a number's standard error; of one window there is none */
static const char *plus(double error, int digits, cli_buffer *b) {
  b->text[0] = 0;
  if (isfinite(error)) snprintf(b->text, sizeof b->text, " &plusmn; %.*f", digits, error);
  return b->text;
}

static void put_bytes(FILE *f, double bytes) {
  cli_buffer b;
  if (isfinite(bytes)) fputs(cli_bytes(bytes, &b), f);
}

/* ---------------------------------------------------------------- colors of runs */

/* Each kind has its color; a second run of one takes a color that none has. */
static int color_of(const report *r, int run) {
  int i, used = 0;
  for (i = 0; i < run; i++) used += r->run[i].kind == r->run[run].kind;
  if (used == 0) return (int)r->run[run].kind;
  for (i = 0, used = 4; i < run; i++) used += color_of(r, i) >= 4;
  return used % COLORS;
}

static const char *const stage_names[4] = {"untrained", "after stage 1", "after stage 2", "after stage 3"};

static const char *about_measure(const report_run *r, int i, char *text, size_t room) {
  const report_measure *m = &r->measures[i];
  cli_buffer n;
  const int more = i + 1 < r->n_measures && r->measures[i + 1].stage == m->stage && m->stage > 0;
  if (more) snprintf(text, room, "in stage %d, %s tokens", m->stage, cli_count(m->tokens, &n));
  else snprintf(text, room, "%s", stage_names[m->stage]);
  return text;
}

/* ---------------------------------------------------------------- opening */

static const report_measure *last_of(const report_run *r) {
  const report_measure *m = r->n_measures ? &r->measures[r->n_measures - 1] : NULL;
  return m && isfinite(m->kl) ? m : NULL; /* without a teacher there is none */
}

static double all_tokens(const report_run *r) { return r->tokens[0] + r->tokens[1] + r->tokens[2]; }

static void write_head(FILE *f, const report *r) {
  unsigned char hash[32];
  sha256(script, sizeof script - 1, hash);
  fputs(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" "
      "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
      "script-src 'sha256-",
      f);
  picture_base64(f, hash, 32);
  fputs("'\">\n<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n", f);
  if (r->about.live) fputs("<meta http-equiv=\"refresh\" content=\"10\">\n", f);
  fputs("<title>mohawk report: ", f);
  put(f, r->n ? r->run[0].name : "experiments");
  fprintf(f, "</title><link rel=\"icon\" href=\"data:,\">\n<style>\n%s%s%s</style></head><body><main>\n", colors,
          style, marks);
}

static void write_banner(FILE *f, const report_live *live) {
  cli_buffer left;
  char at[16] = "";
  const time_t now = time(NULL);
  const struct tm *t = localtime(&now);
  if (t) strftime(at, sizeof at, "%H:%M:%S", t);
  fprintf(f, "<p class=\"banner\" role=\"status\">running, stage %d, %.0f %%", live->stage, 100 * live->share);
  if (live->seconds_left >= 0) fprintf(f, ", %s left in it", cli_time(live->seconds_left, &left));
  fprintf(f, ", written at %s</p>\n", at);
}

/* one run in one sentence */
static void write_verdict(FILE *f, const report_run *r) {
  const report_measure *m = last_of(r), *first = r->n_measures ? &r->measures[0] : NULL;
  int stages = 0, i;
  cli_buffer n, e;
  for (i = 0; i < 3 && (!m || i < m->stage); i++) stages += r->tokens[i] > 0;
  if (r->trains && r->n_measures) {
    const report_measure *last = &r->measures[r->n_measures - 1];
    fprintf(f, "After %s tokens the cross-entropy on held-out text is %.3f%s (standard error; one seed).",
            cli_count(last->tokens, &n), last->cross_entropy, plus(last->cross_entropy_error, 3, &e));
  } else if (!m) {
    fputs("This run has no evaluation yet, so what it reached is not known", f);
    fputs(r->trains ? "." : ": <code>mohawk eval</code> measures its student.", f);
  } else {
    fprintf(
        f,
        "%s tokens in %s bring the student to a KL divergence of %.3f%s from its teacher (standard error; "
        "one seed)",
        cli_count(m->tokens, &n),
        stages == 1 && m->stage == 3 ? "stage 3 alone"
        : stages == 0                ? "no stage"
        : stages == 1                ? "one stage"
        : stages == 2                ? "two stages"
                                     : "three stages",
        m->kl, plus(m->kl_error, 3, &e));
    if (first != m && first->stage == 0) fprintf(f, ", from %.3f untrained", first->kl);
    fprintf(f, "; it ranks the teacher's next token first %.1f %% of the time.", 100 * m->agreement);
  }
}

/* two runs, with what can be said of their difference */
static void write_difference(FILE *f, const report_run *a, const report_run *b) {
  const report_measure *x = last_of(a), *y = last_of(b);
  const double gain = y->kl - x->kl, error = sqrt(x->kl_error * x->kl_error + y->kl_error * y->kl_error);
  cli_buffer m, n;
  fprintf(f, "KL divergence from the teacher: %.3f%s with ", x->kl, plus(x->kl_error, 3, &m));
  put(f, a->name);
  fprintf(f, ", %.3f%s with ", y->kl, plus(y->kl_error, 3, &m));
  put(f, b->name);
  if (fabs(x->tokens - y->tokens) > 0.01 * x->tokens)
    fprintf(f, ", after %s and %s tokens", cli_count(x->tokens, &m), cli_count(y->tokens, &n));
  else fprintf(f, ", both after %s tokens", cli_count(x->tokens, &m));
  fprintf(f, " (standard errors; one seed each)%s.", fabs(gain) < 2 * error ? ": no clear difference" : "");
}

static void write_model_name(FILE *f, const report_run *r) {
  const report_model *s = &r->student_model, *t = &r->teacher_model;
  cli_buffer a, b;
  if (t->there && s->there) {
    put(f, t->mixers);
    fprintf(f, ", %s parameters &rarr; ", cli_count(t->parameters, &a));
    put(f, s->mixers);
    fprintf(f, ", %s", cli_count(s->parameters, &b));
  } else {
    put(f, r->name);
  }
}

static void write_opening(FILE *f, const report *r) {
  cli_buffer e;
  int i, two = r->n > 1 && last_of(&r->run[0]) && last_of(&r->run[1]);
  write_head(f, r);
  fputs("<h1>", f);
  if (r->n) write_model_name(f, &r->run[0]);
  else fputs("A table of experiments", f);
  fputs("</h1>\n", f);
  if (r->about.live) write_banner(f, r->about.live);
  if (r->n) {
    fputs("<p class=\"verdict\"><strong>", f);
    if (two) write_difference(f, &r->run[0], &r->run[1]);
    else write_verdict(f, &r->run[0]);
    fputs("</strong></p>\n", f);
  }
  for (i = 2; two && i < r->n; i++) {
    const report_measure *m = last_of(&r->run[i]);
    if (!m) continue;
    fputs(i == 2 ? "<p>And with " : " with ", f);
    put(f, r->run[i].name);
    fprintf(f, ": %.3f%s%s", m->kl, plus(m->kl_error, 3, &e), i + 1 < r->n ? ";" : ".</p>\n");
  }
  if (r->about.note) {
    fputs("<p>", f);
    put(f, r->about.note);
    fputs("</p>\n", f);
  }
}

/* ---------------------------------------------------------------- what each stage bought */

static int line_of(const report *r, int run, figure_line *l, double *x, double *y, double *error) {
  const report_run *one = &r->run[run];
  int i;
  l->name = one->name;
  l->color = color_of(r, run);
  l->mark = (int)one->kind;
  l->x = x;
  l->y = y;
  l->error = error;
  l->n = 0;
  for (i = 0; i < one->n_measures && !one->trains; i++) {
    if (!(one->measures[i].kl > 0)) continue;
    x[l->n] = one->measures[i].tokens;
    y[l->n] = one->measures[i].kl;
    error[l->n++] = one->measures[i].kl_error;
  }
  return l->n;
}

/* what the figure shows */
typedef struct stages {
  figure_line lines[REPORT_RUNS];
  double x[REPORT_RUNS][REPORT_MEASURES], y[REPORT_RUNS][REPORT_MEASURES], e[REPORT_RUNS][REPORT_MEASURES], bounds[3];
  int alone; /* runs measured once */
} stages;

/* 0: nothing was measured */
static int find_stages(const report *r, stages *s) {
  int i, any = 0;
  memset(s, 0, sizeof *s);
  for (i = 0; i < r->n; i++) {
    any += line_of(r, i, &s->lines[i], s->x[i], s->y[i], s->e[i]);
    s->alone += s->lines[i].n == 1;
  }
  for (i = 0; i < 3 && r->n; i++) s->bounds[i] = report_before(&r->run[0], i + 1) + r->run[0].tokens[i];
  return any;
}

int page_figure(FILE *f, const report *r) {
  static stages s;
  if (!find_stages(r, &s)) return 0;
  figure_stages(f, s.lines, r->n, s.bounds, FIGURE_FILE, colors, marks);
  return 1;
}

static void write_stages(FILE *f, const report *r) {
  static stages s;
  if (!find_stages(r, &s)) return;
  fputs("<section><h2>What each stage bought</h2>\n<figure>", f);
  figure_stages(f, s.lines, r->n, s.bounds, FIGURE_WIDE, NULL, NULL);
  figure_stages(f, s.lines, r->n, s.bounds, FIGURE_NARROW, NULL, NULL);
  fprintf(
      f,
      "<figcaption>KL divergence from the teacher on held-out text, in nats per token, logarithmic; lines across the "
      "marks: two standard errors over windows of text, each way. Marks are measured, lines between them only join "
      "them.%s%s</figcaption></figure></section>\n",
      s.alone ? " A single mark: measured only at the end." : "",
      r->n > 1 ? " The bands are the stages of the first run." : "");
}

/* ---------------------------------------------------------------- the idea */

static void write_idea(FILE *f) {
  fputs(
      "<section><h2>What a mixing matrix is, and why three stages</h2>\n"
      "<p>A language model reads a text token by token. At each token it mixes in something of the earlier ones: how "
      "much of "
      "which is a triangle of numbers, the <dfn>mixing matrix</dfn>. A Transformer (the teacher) computes every entry, "
      "so "
      "twice the text costs four times the work, and it must keep all of it. A state-space model (the student) makes "
      "its "
      "matrix from a running summary of fixed size: twice the text, twice the work, same memory.</p>\n"
      "<p>MOHAWK turns the first into the second in three steps, from the inside out: (1) make each layer's triangle "
      "look "
      "like the teacher's, (2) make each layer's output equal, (3) make the predictions equal.</p>\n"
      "<p class=\"soft\"><dfn>KL divergence</dfn>: how far the student's predictions are from the teacher's, 0 when "
      "they are "
      "equal; in <dfn>nats</dfn>, where 0.69 is one bit. <dfn>Relative error</dfn> of a matrix: the size of the "
      "difference "
      "over the size of the teacher's. 0 is equal, and 1 is what a matrix of zeros gets.</p></section>\n",
      f);
}

/* ---------------------------------------------------------------- losses */

enum { POINTS = 240 };

/* One stage of a run as at most POINTS points: x in tokens of all stages, the value of an
   update, the mean over those around it, and the learning rate. Means are centered, and narrower at
   both ends, so that they neither lag nor start at one lucky batch. */
static int curve_of(const report_run *r, int stage, double *x, double *raw, double *mean, double *rate) {
  const double before = report_before(r, stage);
  int i, k, n, first = -1, end = 0, points;
  for (i = 0; i < r->n_points; i++)
    if (r->points[i].stage == stage) {
      if (first < 0) first = i;
      end = i + 1;
    }
  if (first < 0) return 0;
  points = end - first < POINTS ? end - first : POINTS;
  for (n = 0; n < points; n++) {
    const int at = first + (int)((double)(end - first - 1) * n / (points > 1 ? points - 1 : 1));
    int half = 1 + (end - first) / 60;
    double sum = 0;
    if (at - first < half) half = at - first;
    if (end - 1 - at < half) half = end - 1 - at;
    for (k = at - half; k <= at + half; k++) sum += r->points[k].loss;
    mean[n] = sum / (2 * half + 1);
    raw[n] = r->points[at].loss;
    x[n] = before + r->points[at].tokens;
    rate[n] = isfinite(r->points[at].lr) ? r->points[at].lr : 0;
  }
  return points;
}

/* One stage of all runs that have it, as a chart. */
static void write_loss(FILE *f, const report *r, int stage) {
  static const char *const titles[] = {"", "Stage 1: matrices", "Stage 2: hidden states", "Stage 3: predictions"};
  static const char *const units[] = {"", "distance from the teacher's, all layers",
                                      "distance of the layers' outputs, all layers",
                                      "cross-entropy with the teacher, nats a token"};
  static double x[REPORT_RUNS][POINTS], raw[POINTS], mean[REPORT_RUNS][POINTS], rate[REPORT_RUNS][POINTS];
  figure_line lines[REPORT_RUNS];
  figure_chart c;
  int i, drawn = 0;
  memset(&c, 0, sizeof c);
  c.level = NAN;
  c.lines = lines;
  c.title = r->n && r->run[0].trains ? "Training" : titles[stage];
  c.y_label = r->n && r->run[0].trains ? "cross-entropy of the next token, nats" : units[stage];
  for (i = 0; i < r->n; i++) {
    figure_line *l = &lines[c.n];
    l->n = curve_of(&r->run[i], stage, x[c.n], raw, mean[c.n], rate[c.n]);
    if (l->n == 0) continue;
    l->name = r->run[i].name;
    l->color = color_of(r, i);
    l->mark = (int)r->run[i].kind;
    l->x = x[c.n];
    l->y = mean[c.n];
    l->error = NULL;
    if (l->n > drawn) drawn = l->n;
    c.n++;
  }
  if (drawn < 2) return; /* one point is no curve */
  if (r->n == 1) c.faint_y = raw;
  c.rate = rate[0];
  if (stage == 3 && r->run[0].has_teacher && !r->run[0].trains) {
    c.level = r->run[0].teacher.cross_entropy;
    c.level_name = "teacher, held-out text";
    c.level_left = 1;
  }
  figure_curve(f, &c);
}

static int by_size(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Median, least and largest error of all heads at each moment of heads.csv. */
static int errors_of(const report_run *r, double *x, double *median, double *low, double *high, int room) {
  double *some = (double *)malloc((size_t)r->n_heads * sizeof *some + 1);
  int i, k, n = 0;
  for (i = 0; some && i < r->n_heads && n < room; i = k) {
    int m = 0;
    for (k = i; k < r->n_heads && r->heads[k].stage == r->heads[i].stage && r->heads[k].tokens == r->heads[i].tokens;
         k++)
      some[m++] = r->heads[k].relative;
    qsort(some, (size_t)m, sizeof *some, by_size);
    x[n] = (r->heads[i].stage ? report_before(r, r->heads[i].stage) : 0) + r->heads[i].tokens;
    median[n] = m % 2 ? some[m / 2] : (some[m / 2 - 1] + some[m / 2]) / 2;
    low[n] = some[0];
    high[n++] = some[m - 1];
  }
  free(some);
  return n;
}

enum { MOMENTS = 160 };

static void write_errors(FILE *f, const report *r) {
  static double x[REPORT_RUNS][MOMENTS], y[REPORT_RUNS][MOMENTS], low[REPORT_RUNS][MOMENTS], high[REPORT_RUNS][MOMENTS];
  figure_line lines[REPORT_RUNS];
  figure_chart c;
  int i, drawn = 0;
  memset(&c, 0, sizeof c);
  c.lines = lines;
  c.title = "Relative error of the matrices";
  c.y_label = r->n == 1 ? "median of all heads; band: best to worst head" : "median of all heads";
  c.level = 1;
  c.level_name = "a matrix of zeros";
  for (i = 0; i < r->n; i++) {
    figure_line *l = &lines[c.n];
    l->n = errors_of(&r->run[i], x[c.n], y[c.n], low[c.n], high[c.n], MOMENTS);
    if (l->n == 0) continue;
    l->name = r->run[i].name;
    l->color = color_of(r, i);
    l->mark = (int)r->run[i].kind;
    l->x = x[c.n];
    l->y = y[c.n];
    l->error = NULL;
    drawn += l->n;
    c.n++;
  }
  if (drawn < 2) return;
  if (c.n == 1) c.low = low[0], c.high = high[0];
  figure_curve(f, &c);
}

static void write_curves(FILE *f, const report *r) {
  int i, any = 0;
  for (i = 0; i < r->n; i++) any += r->run[i].n_points;
  if (any == 0) return;
  fputs("<section><h2>Losses</h2>\n<figure><div class=\"grid\">\n", f);
  for (i = 1; i <= 3; i++) write_loss(f, r, i);
  write_errors(f, r);
  fprintf(
      f,
      "</div><figcaption>All axes of losses are logarithmic, and every update is in sight. %sGrey at the bottom: the "
      "learning rate. %s</figcaption></figure></section>\n",
      r->n == 1 ? "Thin: single updates; thick: their mean over those around. "
                : "Means over updates around each point. ",
      r->n == 1 && r->run[0].trains
          ? ""
          : "Stages 1 and 2 sum over the layers that train, and stage 3 has the alignment of hidden states in its loss "
            "where "
            "the recipe asks for it, so losses of different recipes are not comparable: held-out text decides.");
}

/* ---------------------------------------------------------------- heads */

/* light for 0, dark blue for 1 and more */
static void heat_color(double error, char back[8], const char **ink) {
  const double s = error < 0 ? 0 : error > 1 ? 1 : error;
  const int rgb[3] = {(int)(237 - 226 * s), (int)(243 - 198 * s), (int)(250 - 158 * s)};
  double light = 0;
  static const double part[3] = {0.2126, 0.7152, 0.0722};
  int i;
  for (i = 0; i < 3; i++) {
    const double v = rgb[i] / 255.0;
    light += part[i] * (v <= 0.04045 ? v / 12.92 : pow((v + 0.055) / 1.055, 2.4));
  }
  snprintf(back, 8, "#%02x%02x%02x", rgb[0] & 255, rgb[1] & 255, rgb[2] & 255);
  *ink = light > 0.179 ? "#000" : "#fff";
}

/* The map of one moment: a table, whose cells have their numbers where there is room. */
static void write_heat(FILE *f, const report *r, int run, int moment) {
  static const char *const titles[] = {"start", "after stage 1", "after stage 2", "after stage 3"};
  const report_run *one = &r->run[run];
  const watch_probes *p = &one->probes;
  const int numbers = p->heads <= 12;
  char back[8];
  const char *ink;
  int l, h;
  fprintf(f,
          "<div class=\"heatbox scroll\" tabindex=\"0\" role=\"group\" aria-label=\"relative errors, %s\"><table "
          "class=\"heat\">"
          "<caption>%s</caption><thead><tr><th scope=\"col\">head</th>",
          titles[moment], titles[moment]);
  for (h = 0; h < p->heads; h++)
    if (numbers) fprintf(f, "<th scope=\"col\">%d</th>", h);
    else fputs("<td class=\"tiny\"></td>", f);
  fputs("</tr></thead><tbody>\n", f);
  for (l = 0; l < p->layers; l++) {
    fprintf(f, "<tr><th scope=\"row\">layer %d</th>", l);
    for (h = 0; h < p->heads; h++) {
      const double e = one->relative[moment][l * p->heads + h];
      heat_color(e, back, &ink);
      fprintf(f,
              "<td data-h=\"%d.%d.%d\" data-m=\"%s\" class=\"%s%s\" style=\"background-color:%s;color:%s\" "
              "title=\"layer %d, head %d: "
              "%.3f\">",
              run, l, h, watch_moment(moment), e > 1 ? "over" : "", numbers ? "" : " tiny", back, ink, l, h, e);
      if (numbers) fprintf(f, e >= 9.995 ? "<b>%.0f</b></td>" : "<b>%.2f</b></td>", e);
      else fputs("</td>", f);
    }
    fputs("</tr>\n", f);
  }
  fputs("</tbody></table></div>\n", f);
}

/* For each run a map of its heads at the start and after each stage. */
static void write_heads(FILE *f, const report *r) {
  char back[8];
  const char *ink;
  int i, m, any = 0;
  for (i = 0; i < r->n; i++) any += r->run[i].probes.teacher != NULL;
  if (any == 0) return;
  fputs("<section><h2>How near each head is</h2>\n<figure>", f);
  for (i = 0; i < r->n; i++) {
    if (!r->run[i].probes.teacher) continue;
    if (any > 1) {
      fputs("<h3>", f);
      put(f, r->run[i].name);
      fputs("</h3>", f);
    }
    fputs("<div class=\"grid heats\">\n", f);
    for (m = 0; m < WATCH_MOMENTS; m++)
      if (r->run[i].relative[m]) write_heat(f, r, i, m);
    fputs("</div>", f);
  }
  fputs(
      "<figcaption>Relative error of each head's matrix, ||M<sub>student</sub> &minus; "
      "M<sub>teacher</sub>||<sub>F</sub> / "
      "||M<sub>teacher</sub>||<sub>F</sub>, on the text below. ",
      f);
  for (m = 0; m <= 2; m++) {
    heat_color(m, back, &ink);
    fprintf(f, "<span class=\"key%s\" style=\"background-color:%s\"></span> %s", m == 2 ? " over" : "", back,
            m == 0   ? "0: equal, "
            : m == 1 ? "1: like a matrix of zeros, "
                     : "more: worse than zeros. ");
  }
  fputs(
      "Stages 2 and 3 do not ask for equal matrices, so errors may rise again in them. A click shows the head's "
      "matrices.</figcaption></figure></section>\n",
      f);
}

/* ---------------------------------------------------------------- matrices */

/* heads in the order of their errors at the last moment */
typedef struct ranked {
  double error;
  int head;
} ranked;

static int by_error(const void *a, const void *b) {
  const ranked *x = (const ranked *)a, *y = (const ranked *)b;
  return x->error != y->error ? (x->error > y->error) - (x->error < y->error) : x->head - y->head;
}

static int last_moment(const report_run *r) {
  int m = WATCH_MOMENTS - 1;
  while (m >= 0 && !r->relative[m]) m--;
  return m;
}

/* Ranks n heads from the given one on. NULL when there is no memory. */
static ranked *rank(const report_run *r, int from, int n) {
  ranked *all = (ranked *)malloc((size_t)n * sizeof *all);
  int i;
  for (i = 0; all && i < n; i++) {
    all[i].head = from + i;
    all[i].error = r->relative[last_moment(r)][from + i];
  }
  if (all) qsort(all, (size_t)n, sizeof *all, by_error);
  return all;
}

/* the heads whose matrices are in the page: all, or of many the best, median and worst of each
   layer */
static int choose(const report_run *r, int *picks) {
  const int heads = r->probes.heads, layers = r->probes.layers, all = layers * heads;
  int i, l, h, n = 0;
  if (all <= 64) {
    for (i = 0; i < all; i++) picks[n++] = i;
    return n;
  }
  for (l = 0; l < layers; l++) {
    ranked *order = rank(r, l * heads, heads);
    if (!order) return n;
    for (h = l * heads; h < (l + 1) * heads; h++)
      if (h == order[0].head || h == order[(heads - 1) / 2].head || h == order[heads - 1].head) picks[n++] = h;
    free(order);
  }
  return n;
}

enum { MOST_PICKS = 3 * MHK_MAX_LAYERS };

/* A head's bytes as a matrix; less: minus another's. */
static void unpack(const unsigned char *bytes, const unsigned char *less, int T, float *out) {
  int i, k, at = 0;
  memset(out, 0, sizeof *out * (size_t)T * (size_t)T);
  for (i = 0; i < T; i++)
    for (k = 0; k <= i; k++, at++)
      out[i * T + k] = (float)(picture_value(bytes[at]) - (less ? picture_value(less[at]) : 0));
}

/* teacher, student and difference of one head at the last moment, and at the start */
static void write_triple(FILE *f, const report_run *r, int head, const char *what, const char *cls) {
  const watch_probes *p = &r->probes;
  const size_t each = (size_t)p->T * (size_t)(p->T + 1) / 2, at = (size_t)head * each;
  const int m = last_moment(r), first = m > 0 && p->student[0];
  static const char *const titles[] = {"student, before training", "student, after stage 1", "student, after stage 2",
                                       "student, after stage 3"};
  float *x = (float *)malloc((size_t)p->T * (size_t)p->T * sizeof *x);
  int i;
  if (!x) return;
  fprintf(f, "<div class=\"%s\"><div><p>%s: layer %d, head %d, relative error %.2f</p><div class=\"grid three\">", cls,
          what, head / p->heads, head % p->heads, r->relative[m][head]);
  for (i = 0; i < 4; i++) {
    picture_panel panel = {i == 0   ? "teacher"
                           : i == 1 ? titles[0]
                           : i == 2 ? titles[m]
                                    : "student \xe2\x88\x92 teacher",
                           x};
    if (i == 1 && !first) continue;
    unpack((i == 0 ? p->teacher : p->student[i == 1 ? 0 : m]) + at, i == 3 ? p->teacher + at : NULL, p->T, x);
    picture_panel_svg(f, &panel, p->T);
  }
  fputs("</div></div></div>\n", f);
  free(x);
}

static void write_list(FILE *f, const watch_probes *p) {
  int i;
  for (i = 0; i < p->T; i++) {
    const int from = i ? p->ends[i - 1] : 0;
    fputs(i ? ",\"" : "\"", f);
    put_some(f, p->text + from, (size_t)(p->ends[i] - from), 1);
    fputs("\"", f);
  }
}

static void write_some_bytes(FILE *f, const watch_probes *p, const unsigned char *all, const int *picks, int n) {
  const size_t each = (size_t)p->T * (size_t)(p->T + 1) / 2;
  unsigned char *some = (unsigned char *)malloc((size_t)n * each + 1);
  int i;
  for (i = 0; some && i < n; i++) memcpy(some + (size_t)i * each, all + (size_t)picks[i] * each, each);
  fputc('"', f);
  if (some) picture_base64(f, some, (size_t)n * each);
  fputc('"', f);
  free(some);
}

static int same_teacher(const report_run *a, const report_run *b, const int *x, int nx, const int *y, int ny) {
  const watch_probes *p = &a->probes, *q = &b->probes;
  return nx == ny && memcmp(x, y, (size_t)nx * sizeof *x) == 0 && p->layers == q->layers && p->heads == q->heads &&
         p->T == q->T &&
         memcmp(p->teacher, q->teacher, (size_t)p->layers * (size_t)p->heads * (size_t)p->T * (size_t)(p->T + 1) / 2) ==
             0;
}

/* What the script reads: the first run at all moments, others as they ended. */
static void write_data(FILE *f, const report *r, int median, const int *picks, int n) {
  static int others[MOST_PICKS];
  const report_run *first = NULL;
  char color[8];
  int i, k, m, count;
  fprintf(f, "<script type=\"application/json\" id=\"data\">{\"live\":%s,\"at\":[%d,%d],\"colors\":[",
          r->about.live ? "true" : "false", median < 0 ? 0 : median / r->run[0].probes.heads,
          median < 0 ? 0 : median % r->run[0].probes.heads);
  for (i = 0; i < 255; i++) {
    picture_color(i, color);
    fprintf(f, "%s\"%s\"", i ? "," : "", color);
  }
  fputs("],\"runs\":[", f);
  for (i = 0; i < r->n && median >= 0; i++) {
    const report_run *one = &r->run[i];
    const watch_probes *p = &one->probes;
    const int last = last_moment(one);
    int *these = i == 0 ? (int *)picks : others, some = 0;
    if (!p->teacher || last < 0) continue;
    count = i == 0 ? n : choose(one, others);
    fprintf(f, "%s{\"name\":\"", first ? "," : "");
    put_some(f, one->name, strlen(one->name), 1);
    fprintf(f, "\",\"layers\":%d,\"heads\":%d,\"T\":%d,\"picks\":[", p->layers, p->heads, p->T);
    for (k = 0; k < count; k++) fprintf(f, "%s%d", k ? "," : "", these[k]);
    fputs("],\"text\":[", f);
    write_list(f, p);
    fputs("],", f);
    if (!first || !same_teacher(first, one, picks, n, these, count)) {
      fputs("\"teacher\":", f);
      write_some_bytes(f, p, p->teacher, these, count);
      fputc(',', f);
    }
    fputs("\"m\":{", f);
    for (m = 0; m < WATCH_MOMENTS; m++) {
      if (!one->relative[m] || (first && m != last)) continue;
      fprintf(f, "%s\"%s\":", some++ ? "," : "", watch_moment(m));
      write_some_bytes(f, p, p->student[m], these, count);
    }
    fputs("},\"error\":{", f);
    for (m = some = 0; m < WATCH_MOMENTS; m++) {
      if (!one->relative[m] || (first && m != last)) continue;
      fprintf(f, "%s\"%s\":[", some++ ? "," : "", watch_moment(m));
      for (k = 0; k < count; k++) fprintf(f, "%s%.4g", k ? "," : "", one->relative[m][these[k]]);
      fputs("]", f);
    }
    fputs("}}", f);
    if (!first) first = one;
  }
  fputs("]}</script>\n", f);
}

/* What the script fills: choices, three canvases, and a line about a row. */
static void write_picker(FILE *f, const report *r) {
  int i, any = 0;
  fputs("<div id=\"pick\" hidden><div class=\"pick\">", f);
  for (i = 0; i < r->n; i++) any += r->run[i].probes.teacher != NULL && last_moment(&r->run[i]) >= 0;
  if (any > 1) {
    int number = 0;
    fputs("<label>run <select id=\"run\">", f);
    for (i = 0; i < r->n; i++) {
      if (!r->run[i].probes.teacher || last_moment(&r->run[i]) < 0) continue;
      fprintf(f, "<option value=\"%d\">", number++);
      put(f, r->run[i].name);
      fputs("</option>", f);
    }
    fputs("</select></label>", f);
  }
  fputs(
      "<label>layer <input type=\"range\" id=\"layer\" min=\"0\" step=\"1\"><span id=\"layer-is\"></span></label>"
      "<label>head <input type=\"range\" id=\"head\" min=\"0\" step=\"1\"><span id=\"head-is\"></span></label>"
      "<fieldset id=\"moments\"><legend>student at</legend></fieldset></div>\n<p id=\"which\" role=\"status\"></p>"
      "<div class=\"grid three\">",
      f);
  for (i = 0; i < 3; i++)
    fprintf(f,
            "<figure><canvas id=\"c%d\" width=\"64\" height=\"64\" tabindex=\"0\" role=\"img\" aria-label=\"mixing "
            "matrix\"></canvas>"
            "<figcaption>%s</figcaption></figure>",
            i,
            i == 0   ? "teacher"
            : i == 1 ? "student"
                     : "student &minus; teacher");
  fputs("</div><p id=\"say\"></p></div>\n", f);
}

/* The chosen head for the script, and without it the median one; on paper the best and the worst
   too. */
static void write_matrices(FILE *f, const report *r) {
  static int picks[MOST_PICKS];
  const report_run *one = NULL;
  ranked *order;
  int i, n, all;
  for (i = 0; i < r->n && !one; i++)
    if (r->run[i].probes.teacher && last_moment(&r->run[i]) >= 0) one = &r->run[i];
  if (!one || one != &r->run[0]) { /* others are drawn beside the first one only */
    write_data(f, r, -1, NULL, 0);
    return;
  }
  all = one->probes.layers * one->probes.heads;
  order = rank(one, 0, all);
  if (!order) return;
  n = choose(one, picks);
  fputs("<section><h2>Mixing matrices</h2>\n<figure>", f);
  write_picker(f, r);
  write_triple(f, one, order[(all - 1) / 2].head, "The median head", "still");
  write_triple(f, one, order[0].head, "The best head", "fixed");
  write_triple(f, one, order[all - 1].head, "The worst head", "fixed");
  fputs("<div class=\"legend\">\n", f);
  picture_legend_svg(f);
  fprintf(
      f,
      "</div><figcaption>Row: the token that writes; column: the token that is read. All in the same colors, over the "
      "root of the weight, so that small ones are visible; what is beyond 1 or -1 has the colors of the ends. The "
      "teacher's rows sum to one, the student's may be negative and are not bounded. A student's matrix is computed "
      "from the "
      "teacher's hidden states, as in stage 1. Shown first: the median head, by its last error.%s The text: &ldquo;",
      all > 64 ? " Of the many heads, the best, the median and the worst of each layer are in this file." : "");
  put_some(f, one->probes.text, (size_t)one->probes.ends[one->probes.T - 1], 0);
  fputs("&rdquo;</figcaption></figure></section>\n", f);
  i = order[(all - 1) / 2].head;
  if (all > 64) { /* the median of all need not be among those of its layer */
    const int layer = i / one->probes.heads;
    int k;
    for (k = 0; k < n && picks[k] != i; k++) {
    }
    for (k = k < n ? -1 : 0; k >= 0 && k < n; k++)
      if (picks[k] / one->probes.heads == layer) i = picks[k];
  }
  write_data(f, r, i, picks, n);
  free(order);
}

/* ---------------------------------------------------------------- tables */

/* A table of experiments as dots and as numbers. */
static void write_table(FILE *f, const report_table *t) {
  static const char *names[REPORT_ROWS];
  static double values[REPORT_ROWS * REPORT_SEEDS];
  static int colors[REPORT_ROWS];
  char title[128];
  cli_buffer n;
  int i, k, s;
  for (i = 0; i < t->n; i++) {
    names[i] = t->name[i];
    colors[i] = t->tokens[i][0] == 0 && t->tokens[i][1] == 0 ? REPORT_ALONE : REPORT_STAGES;
    for (k = 0; k < t->n_seeds; k++) values[i * t->n_seeds + k] = t->kl[i][k];
  }
  fputs("<section><h2>Experiments: ", f);
  put(f, t->folder);
  fputs("</h2>\n<figure>", f);
  snprintf(title, sizeof title, "KL from the teacher of each experiment, by seed");
  figure_dots(f, title,
              t->n_seeds > 1 ? "KL from the teacher, nats (log); line: range over seeds"
                             : "KL from the teacher, nats (log); one seed",
              t->n, t->n_seeds, values, names, colors);
  fprintf(f,
          "<div class=\"scroll\" tabindex=\"0\" role=\"group\" aria-label=\"experiments\"><table "
          "class=\"cards\"><caption>KL "
          "from the teacher where each ended</caption><thead><tr><th scope=\"col\">experiment</th>");
  for (s = 0; s < 3; s++) fprintf(f, "<th scope=\"col\">stage %d tokens</th>", s + 1);
  for (k = 0; k < t->n_seeds; k++) fprintf(f, "<th scope=\"col\">seed %g</th>", t->seeds[k]);
  fputs("<th scope=\"col\">mean</th></tr></thead><tbody>\n", f);
  for (i = 0; i < t->n; i++) {
    double sum = 0;
    int m = 0;
    fputs("<tr><th scope=\"row\">", f);
    put(f, t->name[i]);
    fputs("</th>", f);
    for (s = 0; s < 3; s++)
      fprintf(f, "<td data-label=\"stage %d tokens\">%s</td>", s + 1, cli_count(t->tokens[i][s], &n));
    for (k = 0; k < t->n_seeds; k++) {
      fprintf(f, "<td data-label=\"seed %g\">", t->seeds[k]);
      if (isfinite(t->kl[i][k])) fprintf(f, "%.3f", t->kl[i][k]), sum += t->kl[i][k], m++;
      fputs("</td>", f);
    }
    fputs("<td data-label=\"mean\">", f);
    if (m) fprintf(f, "%.3f", sum / m);
    fputs("</td></tr>\n", f);
  }
  fprintf(f,
          "</tbody></table></div><figcaption>Each dot is one seed, the upright line their mean%s. Grey: stage 3 "
          "alone.</figcaption></figure></section>\n",
          t->n_seeds > 1 ? ", and the line across goes from the least to the most of the seeds" : "");
}

/* ---------------------------------------------------------------- evaluation */

static void write_measure(FILE *f, const report_run *r, int i, int last) {
  const report_measure *m = &r->measures[i];
  char text[64];
  cli_buffer n, e;
  fprintf(f, "<tr%s><th scope=\"row\">%s</th>", i == last ? " class=\"best\"" : "",
          about_measure(r, i, text, sizeof text));
  fprintf(f, "<td data-label=\"tokens\">%s</td><td data-label=\"cross-entropy\">%.3f<small>%s</small></td>",
          cli_count(m->tokens, &n), m->cross_entropy, plus(m->cross_entropy_error, 3, &e));
  if (!isfinite(m->kl)) {
    fputs("<td></td><td></td>", f);
  } else {
    fprintf(f, "<td data-label=\"KL to teacher\">%.3f<small>%s</small></td>", m->kl, plus(m->kl_error, 3, &e));
    fprintf(f, "<td data-label=\"same next token\">%.1f<small>%s %%</small></td>", 100 * m->agreement,
            plus(100 * m->agreement_error, 1, &e));
  }
  fputs("<td data-label=\"memory\">", f);
  put_bytes(f, m->state_bytes);
  fputs("</td></tr>\n", f);
}

/* What results.json has of all runs, and how KL goes along a window. */
static void write_evaluation(FILE *f, const report *r) {
  int i, k, any = 0;
  double predictions = 0;
  cli_buffer n, e;
  for (i = 0; i < r->n; i++) {
    any += r->run[i].n_measures + r->run[i].has_teacher;
    if (r->run[i].n_measures) predictions = r->run[i].measures[0].predictions;
  }
  if (any == 0) return;
  fputs(
      "<section><h2>Measured on held-out text</h2>\n<figure><table class=\"cards\"><thead><tr><th "
      "scope=\"col\">model</th>"
      "<th scope=\"col\">tokens</th><th scope=\"col\">cross-entropy</th><th scope=\"col\">KL to teacher</th>"
      "<th scope=\"col\">same next token</th><th scope=\"col\">memory</th></tr></thead><tbody>\n",
      f);
  for (i = 0; i < r->n; i++) {
    const report_run *one = &r->run[i];
    if (i == 0 && one->has_teacher) {
      fprintf(f,
              "<tr><th scope=\"row\">teacher</th><td></td><td data-label=\"cross-entropy\">%.3f<small>%s</small></td>"
              "<td data-label=\"KL to teacher\">0</td><td data-label=\"same next token\">100 %%</td><td "
              "data-label=\"memory\">",
              one->teacher.cross_entropy, plus(one->teacher.cross_entropy_error, 3, &e));
      put_bytes(f, one->teacher.state_bytes);
      fputs("</td></tr>\n", f);
    }
    if (r->n > 1 && one->n_measures) {
      fputs("<tr><th scope=\"rowgroup\" colspan=\"6\"><strong>", f);
      put(f, one->name);
      fputs("</strong></th></tr>\n", f);
    }
    for (k = 0; k < one->n_measures; k++) write_measure(f, one, k, one->n_measures - 1);
  }
  fprintf(f,
          "</tbody></table><figcaption>Nats per token, over %s predictions on held-out text; &plusmn; is one standard "
          "error over "
          "windows of text. One seed each. Same next token: how often student and teacher rank the same token first. "
          "Memory: "
          "what decoding keeps of a window, in float32.</figcaption></figure>\n",
          cli_count(predictions, &n));
  fputs(
      "<figure><table class=\"cards\"><caption>KL by the position of the token in its window</caption><thead><tr><th "
      "scope=\"col\">student at the end</th><th scope=\"col\">first quarter</th><th scope=\"col\">second</th><th "
      "scope=\"col\">third</th><th scope=\"col\">last</th></tr></thead><tbody>\n",
      f);
  for (i = 0; i < r->n; i++) {
    static const char *const quarters[] = {"first quarter", "second", "third", "last"};
    const report_measure *m = last_of(&r->run[i]);
    if (!m || !isfinite(m->kl_quarter[0])) continue;
    fputs("<tr><th scope=\"row\">", f);
    put(f, r->run[i].name);
    fputs("</th>", f);
    for (k = 0; k < 4; k++) fprintf(f, "<td data-label=\"%s\">%.3f</td>", quarters[k], m->kl_quarter[k]);
    fputs("</tr>\n", f);
  }
  fputs(
      "</tbody></table><figcaption>What a window of exact tokens shows is a smaller part of a longer text, so a "
      "student with one is "
      "best at the start.</figcaption></figure></section>\n",
      f);
}

/* What teacher and students wrote after the same prompt. */
static void write_samples(FILE *f, const report *r) {
  const char *prompt = NULL;
  char text[64];
  int i, k, any = 0;
  for (i = 0; i < r->n; i++) {
    if (r->run[i].prompt && !prompt) prompt = r->run[i].prompt;
    for (k = 0; k < r->run[i].n_measures; k++) any += r->run[i].measures[k].sample != NULL;
  }
  if (any == 0) return;
  fputs("<section><h2>The same text continued</h2>\n", f);
  if (prompt) {
    fputs("<p>&ldquo;", f);
    put(f, prompt);
    fputs(" &hellip;&rdquo;</p>\n", f);
  }
  fputs("<dl>\n", f);
  if (r->run[0].teacher.sample) {
    fputs("<dt>teacher</dt><dd>", f);
    put_sample(f, r->run[0].teacher.sample);
    fputs("</dd>\n", f);
  }
  for (i = 0; i < r->n; i++)
    for (k = 0; k < r->run[i].n_measures; k++) {
      const report_measure *m = &r->run[i].measures[k];
      if (!m->sample) continue;
      fputs("<dt>", f);
      if (r->n > 1) {
        put(f, r->run[i].name);
        fputs(", ", f);
      }
      fprintf(f, "%s<br><span class=\"soft\">KL %.3f</span></dt><dd>", about_measure(&r->run[i], k, text, sizeof text),
              m->kl);
      put_sample(f, m->sample);
      fputs("</dd>\n", f);
    }
  fputs(
      "</dl>\n<p class=\"soft\">Sampled with one seed, temperature 0.7 and top-p 0.9, and not "
      "selected.</p></section>\n",
      f);
}

static void write_memory_row(FILE *f, const char *name, const report_model *m) {
  static const char *const after[] = {"after 256 tokens", "after 2048", "after 16384"};
  cli_buffer n;
  int i;
  if (!m->there) return;
  fputs("<tr><th scope=\"row\">", f);
  put(f, name);
  fputs("</th><td data-label=\"mixers\">", f);
  put(f, m->mixers);
  fprintf(f, "</td><td data-label=\"parameters\">%s</td>", cli_count(m->parameters, &n));
  for (i = 0; i < 3; i++) {
    fprintf(f, "<td data-label=\"%s\">", after[i]);
    put_bytes(f, m->bytes[i]);
    fputs("</td>", f);
  }
  fputs("</tr>\n", f);
}

/* seconds that the updates in a log took */
static double seconds_of(const report_run *r) {
  double seconds = 0, before = 0;
  int i, stage = 0;
  for (i = 0; i < r->n_points; i++) {
    const run_point *p = &r->points[i];
    if (p->stage != stage) before = 0, stage = p->stage;
    if (p->rate > 0 && isfinite(p->rate)) seconds += (p->tokens - before) / p->rate;
    before = p->tokens;
  }
  return seconds;
}

static void write_cost(FILE *f, const report *r) {
  int i, any = 0;
  for (i = 0; i < r->n; i++) any += r->run[i].student_model.there;
  if (any == 0) return;
  fputs(
      "<section><h2>Memory of decoding</h2>\n<figure><table class=\"cards\"><thead><tr><th scope=\"col\">model</th><th "
      "scope=\"col\">mixers</th><th scope=\"col\">parameters</th><th scope=\"col\">after 256 tokens</th><th "
      "scope=\"col\">after "
      "2048</th><th scope=\"col\">after 16384</th></tr></thead><tbody>\n",
      f);
  if (r->run[0].teacher_model.there) write_memory_row(f, "teacher", &r->run[0].teacher_model);
  for (i = 0; i < r->n; i++) write_memory_row(f, r->run[i].name, &r->run[i].student_model);
  fputs(
      "</tbody></table><figcaption>What decoding keeps of one sequence, in float32, computed from the "
      "shapes.</figcaption></figure></section>\n",
      f);
}

/* ---------------------------------------------------------------- settings */

/* a JSON value as a reader would write it: strings without quotes */
static void put_value(FILE *f, foreign_json v) {
  char *text;
  if (*v.at == '"') {
    text = (char *)malloc((size_t)(v.end - v.at) + 1);
    if (text && foreign_json_text(v, text) >= 0) put(f, text);
    free(text);
  } else {
    put_some(f, v.at, (size_t)(v.end - v.at), 0);
  }
}

static void write_inputs(FILE *f, foreign_json record) {
  foreign_json list, value;
  if (!foreign_json_find(record, "inputs", &list) || *list.at != '[') return;
  fputs("<dt>inputs (XXH64)</dt><dd>", f);
  for (list.at++; list.at < list.end;) {
    char *path, *hash, *option;
    while (list.at < list.end && strchr(", \n\r\t", *list.at)) list.at++;
    if (list.at >= list.end || *list.at == ']' || !foreign_json_value(&list, &value)) break;
    option = report_string(value, "option");
    path = report_string(value, "path");
    hash = report_string(value, "xxh64");
    if (option) put(f, option);
    fputs(" <code>", f);
    if (path) put(f, path);
    fputs("</code> ", f);
    put(f, hash ? hash : "a pipe");
    fputs("<br>", f);
    free(option);
    free(path);
    free(hash);
  }
  fputs("</dd>\n", f);
}

static int same_value(foreign_json a, foreign_json b) {
  return a.end - a.at == b.end - b.at && memcmp(a.at, b.at, (size_t)(a.end - a.at)) == 0;
}

/* whether another record has this value under this path of names; inside NULL: at its top */
static int has_value(const report_run *other, const char *inside, const char *name, foreign_json value) {
  foreign_json x;
  if (!other || !other->record.at) return 0;
  x = other->record;
  if (inside && !foreign_json_find(x, inside, &x)) return 0;
  return foreign_json_find(x, name, &x) && same_value(x, value);
}

/* of a later run only what differs from the first */
static void write_settings(FILE *f, const report_run *r, const report_run *first, int several) {
  static const char *const parts[] = {"mohawk", "compiler", "instruction_set", "arithmetic", "threads"};
  static const char *const says[] = {"mohawk", "compiler", "instruction set", "arithmetic", "threads"};
  foreign_json settings, key, value;
  const double seconds = seconds_of(r);
  cli_buffer a, b;
  int i, any = 0;
  if (several) {
    fputs("<h3>", f);
    put(f, r->name);
    fputs("</h3>\n", f);
  }
  fputs("<dl>\n<dt>folder</dt><dd><code>", f);
  put(f, r->folder);
  fputs("</code></dd>\n", f);
  if (seconds > 0)
    fprintf(f, "<dt>training</dt><dd>%s, %s tokens/s, without evaluations</dd>\n", cli_time(seconds, &a),
            cli_count(all_tokens(r) / seconds, &b));
  for (i = 0; r->record.at && i < CLI_COUNT_OF(parts); i++)
    if (foreign_json_find(r->record, parts[i], &value) && !has_value(first, NULL, parts[i], value)) {
      fprintf(f, "<dt>%s</dt><dd>", says[i]);
      put_value(f, value);
      fputs("</dd>\n", f);
    }
  if (r->record.at && foreign_json_find(r->record, "inputs", &value) && !has_value(first, NULL, "inputs", value))
    write_inputs(f, r->record);
  if (r->record.at && foreign_json_find(r->record, "settings", &settings)) {
    fprintf(f, "<dt>settings%s</dt><dd>", first ? ", where they differ from the first run's" : "");
    while (foreign_json_member(&settings, &key, &value)) {
      char name[64];
      const size_t n = (size_t)(key.end - key.at);
      if (n >= sizeof name || foreign_json_text(key, name) < 0 || has_value(first, "settings", name, value)) continue;
      if (any++) fputs(" &middot; ", f);
      put(f, name);
      fputs(" <code>", f);
      put_value(f, value);
      fputs("</code>", f);
    }
    fputs("</dd>\n", f);
  }
  if (!r->record.at) fputs("<dt>settings</dt><dd>not known: the folder has no run.json</dd>\n", f);
  fputs("</dl>\n", f);
}

/* as a shell reads it */
static void put_word(FILE *f, const char *word) {
  if (word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./,:=@%+-")] == 0) {
    put(f, word);
    return;
  }
  fputc('\'', f);
  for (; *word; word++) {
    const char one[2] = {*word, 0};
    if (*word == '\'') fputs("'\\''", f);
    else if ((unsigned char)*word < 0x80) put(f, one);
    else fputc(*word, f);
  }
  fputc('\'', f);
}

static void write_end(FILE *f, const report *r) {
  int i;
  if (r->n) {
    fputs("<section><h2>Settings, seeds, versions</h2>\n", f);
    for (i = 0; i < r->n; i++) write_settings(f, &r->run[i], i ? &r->run[0] : NULL, r->n > 1);
    fputs("<h3>Again, and further</h3>\n<pre>", f);
    for (i = 0; i < r->n; i++)
      if (r->run[i].record.at && !r->run[i].trains) {
        fputs("mohawk rerun ", f);
        put_word(f, r->run[i].folder);
        fputc('\n', f);
      }
    fputs("mohawk report", f);
    for (i = 0; i < r->n; i++) {
      fputc(' ', f);
      put_word(f, r->run[i].folder);
    }
    fputs("</pre></section>\n", f);
  }
  fprintf(f,
          "<p class=\"soft\">Written by mohawk %s. The method: Bick, Li, Xing, Kolter, Gu, &ldquo;Transformers to "
          "SSMs: Distilling "
          "Quadratic Knowledge to Subquadratic Models&rdquo;, arXiv "
          "2408.10189.</p>\n</main>\n<script>%s</script>\n</body></html>\n",
          mhk_version(), script);
}

void page_write(FILE *f, const report *r) {
  int i;
  write_opening(f, r);
  write_stages(f, r);
  write_idea(f);
  write_curves(f, r);
  write_heads(f, r);
  write_matrices(f, r);
  for (i = 0; i < r->n_tables; i++) write_table(f, &r->table[i]);
  write_evaluation(f, r);
  write_samples(f, r);
  write_cost(f, r);
  write_end(f, r);
}
