/* app.js: the page. Two workers do the work (worker.js); this file asks, listens and draws. What it shows is also in window.mohawk, for tests. */
'use strict';

const $ = (id) => document.getElementById(id);
const say = (id, value) => { if ($(id).textContent !== value) $(id).textContent = value; };
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const shared = window.mohawk = { ready: false, errors: [], write: null, cost: null, distil: { state: 'idle' } };

/* ---------------------------------------------------------------- numbers */

const count = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const three = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
function scaled(x, unit) {
  const steps = [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']];
  for (const [size, letter] of steps) if (Math.abs(x) >= size * 0.9995) return `${three.format(x / size)}\u00a0${letter}${unit}`;
  return `${three.format(x)}${unit ? '\u00a0' + unit : ''}`;
}
const bytes = (x) => scaled(x, 'B');
const speed = (x) => scaled(x, '');
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`;
const percent = (x) => (x < 10 ? `${(100 * x).toFixed(0)}\u00a0%` : `${x.toFixed(0)}\u00d7`);

/* ---------------------------------------------------------------- workers */

const enabled = (id, on) => $(id).setAttribute('aria-disabled', String(!on));
const isEnabled = (id) => $(id).getAttribute('aria-disabled') !== 'true';
/* a button that cannot be used now stays where it is and keeps the focus */
const press = (id, action) => $(id).addEventListener('click', (event) => {
  event.preventDefault();
  if (isEnabled(id)) action();
});

function trouble(message) {
  shared.errors.push(message);
  say('trouble', message);
}
function start(names, listeners) {
  if (location.protocol === 'file:') {
    listeners.failed({ message: 'This page must come from a server: run python3 -m http.server in its folder and open http://localhost:8000.' });
    return null;
  }
  const worker = new Worker('worker.js');
  worker.onmessage = ({ data }) => listeners[data.type](data);
  worker.onerror = (event) => listeners.failed({ message: event.message || 'the worker could not start' });
  worker.postMessage({ job: 'load', models: names });
  return worker;
}

/* ---------------------------------------------------------------- writing */

let busy = null; // 'write', 'cost' or nothing: the writing worker does one thing at a time
function update() {
  const idle = shared.ready && busy === null;
  enabled('write-start', idle);
  enabled('cost-start', idle);
  enabled('write-stop', busy === 'write');
  enabled('cost-stop', busy === 'cost');
}

const WEIGHTS = { F32: 'float32', F16: 'float16', BF16: 'bfloat16', Q8: 'int8', Q4: 'int4' };
const describe = (m, kind) => `${kind}, ${m.layers} layers, ${scaled(m.parameters, '')} parameters, ${WEIGHTS[m.weights] || m.weights}, ${bytes(m.bytes)}`;

const writer = start(['teacher', 'student'], {
  loaded({ models, isa }) {
    shared.ready = true;
    shared.models = models;
    say('about-teacher', describe(models.teacher, 'Phi'));
    say('about-student', describe(models.student, 'Phi-Mamba'));
    say('engine', isa === 'wasm' ? 'Running on WebAssembly SIMD, one thread a job.' : `Running on kernels for ${isa}.`);
    say('write-status', 'Ready.');
    enabled('distil-start', true);
    update();
  },
  text({ name, text, ids, count: n, speed: rate, bytes: size }) {
    const w = shared.write[name], box = $(`${name}-text`), end = box.scrollTop + box.clientHeight > box.scrollHeight - 40;
    w.text += text;
    w.ids.push(...ids);
    w.speed = rate;
    w.bytes = size;
    box.lastChild.data += text;
    if (end) box.scrollTop = box.scrollHeight;
    say(`${name}-count`, count.format(n));
    say(`${name}-speed`, speed(rate));
    say(`${name}-bytes`, bytes(size));
  },
  written({ stopped, ended }) {
    for (const name of ['teacher', 'student']) $(`${name}-text`).removeAttribute('aria-busy');
    const { teacher, student } = shared.write;
    const who = ended.length === 2 ? 'both' : ended[0] === 'teacher' ? 'the teacher' : 'the student';
    say('write-status', `${stopped ? 'Stopped' : 'Done'}: ${teacher.ids.length} tokens by the teacher, ${student.ids.length} by the student${ended.length ? `; ${who} ended the text` : ''}.`);
    shared.write.done = true;
    busy = null;
    update();
  },
  measured(point) {
    shared.cost[point.name].push({ tokens: point.tokens, speed: point.speed, bytes: point.bytes, whole: point.whole });
    say('cost-status', `Measured at ${count.format(point.tokens)} tokens.`);
    drawCost();
  },
  'measuring done'({ stopped }) {
    say('cost-status', stopped ? 'Stopped.' : costInShort());
    shared.cost.done = true;
    busy = null;
    update();
  },
  failed({ message }) {
    trouble(message);
    say('write-status', 'That did not work.');
    busy = null;
    update();
  },
});

$('temperature').addEventListener('input', () => {
  const t = Number($('temperature').value), shown = t === 0 ? '0: greedy' : t.toFixed(1);
  say('temperature-value', shown);
  $('temperature').setAttribute('aria-valuetext', shown);
});
$('write-form').addEventListener('submit', (event) => {
  event.preventDefault();
  if (!isEnabled('write-start') || !$('write-form').reportValidity()) return;
  const prompt = $('prompt').value, given = document.createElement('span');
  shared.write = { prompt, done: false, teacher: { text: '', ids: [] }, student: { text: '', ids: [] } };
  given.className = 'given';
  given.textContent = prompt;
  for (const name of ['teacher', 'student']) {
    const box = $(`${name}-text`);
    box.setAttribute('aria-busy', 'true');
    box.classList.remove('nothing');
    box.replaceChildren(given.cloneNode(true), document.createTextNode(''));
    for (const figure of ['count', 'speed', 'bytes']) say(`${name}-${figure}`, '\u2013');
  }
  busy = 'write';
  say('write-status', 'Writing.');
  update();
  writer.postMessage({ job: 'write', prompt, temperature: Number($('temperature').value), seed: Number($('seed').value), tokens: Number($('tokens').value) });
});
press('write-stop', () => writer.postMessage({ job: 'stop' }));

/* ---------------------------------------------------------------- charts */

const SVG = 'http://www.w3.org/2000/svg';
function add(parent, tag, attributes, content) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (content !== undefined) node.textContent = content;
  parent.append(node);
  return node;
}
/* round numbers from low to high, about n of them; on a logarithmic axis the steps 1-2-5, 1-3 or 1 of each power of ten, unless these are few */
function evenTicks([low, high], n) {
  const raw = (high - low) / n, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].find((s) => s * power >= raw * 0.999) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) ticks.push(i * step);
  return ticks;
}
function logTicks([low, high], n) {
  for (const steps of [[1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) for (const s of steps) if (s * 10 ** e >= low * 0.999 && s * 10 ** e <= high * 1.001) ticks.push(s * 10 ** e);
    if (ticks.length < 3) return evenTicks([low, high], 5);
    if (ticks.length <= n || steps.length === 1) return ticks;
  }
}
/* spec: x and y {domain, ticks, log, label, format}, series [{model, name, points [[x, y]], faint, dots}], empty: words when there is nothing to draw */
function chart(id, spec) {
  const box = $(id), width = box.clientWidth, height = box.clientHeight;
  const left = 52, right = 14, top = 12, bottom = 40;
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('width', width);
  svg.setAttribute('height', height);
  svg.setAttribute('aria-hidden', 'true');
  const place = ({ domain: [low, high], log }, from, to) => (v) => {
    const share = log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
    return from + Math.min(1, Math.max(0, share)) * (to - from);
  };
  const x = place(spec.x, left, width - right), y = place(spec.y, height - bottom, top);
  for (const v of spec.y.ticks) {
    add(svg, 'line', { class: 'grid', x1: left, x2: width - right, y1: y(v), y2: y(v) });
    add(svg, 'text', { x: left - 6, y: y(v) + 4, 'text-anchor': 'end' }, spec.y.format(v));
  }
  add(svg, 'line', { class: 'axis', x1: left, x2: width - right, y1: height - bottom, y2: height - bottom });
  for (const v of spec.x.ticks) {
    add(svg, 'line', { class: 'axis', x1: x(v), x2: x(v), y1: height - bottom, y2: height - bottom + 4 });
    add(svg, 'text', { x: x(v), y: height - bottom + 17, 'text-anchor': v === spec.x.domain[1] ? 'end' : 'middle' }, spec.x.format(v));
  }
  add(svg, 'text', { x: width - right, y: height - 6, 'text-anchor': 'end' }, spec.x.label);
  if (spec.series.every((s) => s.points.length === 0)) {
    add(svg, 'text', { class: 'empty', x: (left + width - right) / 2, y: (top + height - bottom) / 2, 'text-anchor': 'middle' }, spec.empty);
  }
  for (const s of spec.series) {
    const group = add(svg, 'g', { class: s.model });
    if (s.points.length) add(group, 'path', { class: s.faint ? 'line faint' : 'line', d: s.points.map(([a, b], i) => `${i ? 'L' : 'M'}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join('') });
    if (s.dots) {
      for (const [a, b] of s.points) {
        if (s.model === 'teacher') add(group, 'circle', { class: 'dot', cx: x(a), cy: y(b), r: 4.5 });
        else add(group, 'rect', { class: 'dot', x: x(a) - 4, y: y(b) - 4, width: 8, height: 8 });
      }
    }
  }
  box.replaceChildren(svg);
  box.setAttribute('aria-label', spec.summary);
}

/* ---------------------------------------------------------------- cost of context */

const CONTEXTS = [64, 256, 1024, 2048, 4096, 8192];
const named = (key, dots) => ['teacher', 'student'].map((model) => ({ model, dots, points: (shared.cost ? shared.cost[model] : []).map((p) => [p.tokens, p[key]]) }));
/* whole powers of ten that hold all values */
function decades(series, otherwise) {
  const all = series.flatMap((s) => s.points.map((p) => p[1]));
  return all.length ? [10 ** Math.floor(Math.log10(Math.min(...all))), 10 ** Math.ceil(Math.log10(Math.max(...all) * 1.0001))] : otherwise;
}
function drawCost() {
  const narrow = $('chart-speed').clientWidth < 380;
  const x = { domain: [64, 8192], log: true, ticks: narrow ? [64, 256, 1024, 8192] : [64, 128, 256, 512, 1024, 2048, 4096, 8192], label: 'tokens of context', format: (v) => count.format(v) };
  const rates = named('speed', true), sizes = named('bytes', true);
  const rateDomain = decades(rates, [100, 10000]), sizeDomain = decades(sizes, [1e4, 1e8]);
  chart('chart-speed', { x, y: { domain: rateDomain, log: true, ticks: logTicks(rateDomain, 7), format: (v) => speed(v) }, series: rates, empty: 'press Measure', summary: `Tokens per second against tokens of context. ${costSummary()}` });
  chart('chart-bytes', { x, y: { domain: sizeDomain, log: true, ticks: logTicks(sizeDomain, 7), format: (v) => bytes(v) }, series: sizes, empty: 'press Measure', summary: `Memory against tokens of context. ${costSummary()}` });
  if (!shared.cost) return;
  $('cost-table').replaceChildren(...CONTEXTS.map((tokens) => {
    const row = document.createElement('tr'), at = (name) => shared.cost[name].find((p) => p.tokens === tokens);
    const cells = [count.format(tokens), ...['speed', 'bytes', 'whole'].flatMap((key) => ['teacher', 'student'].map((name) => (at(name) ? (key === 'speed' ? speed : bytes)(at(name)[key]) : '\u2013')))];
    cells.forEach((value, i) => {
      const cell = document.createElement(i ? 'td' : 'th');
      if (!i) cell.scope = 'row';
      cell.textContent = value;
      row.append(cell);
    });
    return row;
  }));
}
function costSummary() {
  const { teacher = [], student = [] } = shared.cost || {};
  if (!teacher.length || !student.length) return 'Not measured yet.';
  const tell = (name, list) => {
    const a = list[0], b = list[list.length - 1];
    return `${name}: ${speed(a.speed)} tokens/s and ${bytes(a.bytes)} at ${count.format(a.tokens)}, ${speed(b.speed)} tokens/s and ${bytes(b.bytes)} at ${count.format(b.tokens)}`;
  };
  return `${tell('Teacher', teacher)}. ${tell('Student', student)}.`;
}
function costInShort() {
  const { teacher: [...t], student: [...s] } = shared.cost, a = t.pop(), b = s.pop();
  return `At ${count.format(a.tokens)} tokens the teacher writes ${speed(a.speed)} tokens/s and keeps ${bytes(a.bytes)}, the student ${speed(b.speed)} and ${bytes(b.bytes)}.`;
}
press('cost-start', () => {
  shared.cost = { teacher: [], student: [], done: false };
  busy = 'cost';
  say('cost-status', 'Reading.');
  update();
  drawCost();
  writer.postMessage({ job: 'measure', contexts: CONTEXTS });
});
press('cost-stop', () => writer.postMessage({ job: 'stop' }));

/* ---------------------------------------------------------------- matrices */

/* The scale of mohawk's pictures: signed root of the entry, 0 dark, 1 yellow, -1 red; lightness grows evenly (OKLab, Ottosson 2020), so that it
   reads without colour too. 255 steps from -1 to 1. */
const PALETTE = Array.from({ length: 255 }, (_, i) => {
  const u = (i - 127) / 127, s = Math.abs(u), light = u < 0 ? 0.21 + 0.52 * s : 0.21 + 0.74 * s, chroma = u < 0 ? 0.07 + 0.13 * s : 0.07 + 0.08 * s;
  const hue = (u < 0 ? 285 + 100 * s : 285 - 180 * s) * Math.PI / 180, a = chroma * Math.cos(hue), b = chroma * Math.sin(hue);
  const l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3, m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3, k = (light - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const byte = (v) => Math.round(255 * Math.min(1, Math.max(0, v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055)));
  return [byte(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * k), byte(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * k), byte(-0.0041960863 * l - 0.7034186147 * m + 1.707614701 * k)];
});
const colour = (value) => PALETTE[127 + Math.round(127 * Math.max(-1, Math.min(1, Math.sign(value) * Math.sqrt(Math.abs(value)))))] || PALETTE[127];
function paint(id, size, values) {
  const canvas = $(id), image = new ImageData(size, size);
  for (let row = 0; row < size; row++) {
    for (let column = 0; column <= row; column++) image.data.set([...colour(values[row * size + column]), 255], 4 * (row * size + column));
  }
  canvas.width = canvas.height = size;
  canvas.getContext('2d').putImageData(image, 0, 0);
}
function paintScale() {
  const image = new ImageData(255, 1);
  PALETTE.forEach((rgb, i) => image.data.set([...rgb, 255], 4 * i));
  $('scale').getContext('2d').putImageData(image, 0, 0);
}

const LAYERS = 4, HEADS = 4;
let head = 1;
function buildHeads() {
  const grid = document.createElement('div');
  grid.className = 'grid';
  grid.style.gridTemplateColumns = `auto repeat(${HEADS}, minmax(0, 1fr))`;
  const word = (content) => {
    const span = document.createElement('span');
    span.textContent = content;
    span.setAttribute('aria-hidden', 'true');
    grid.append(span);
  };
  word('');
  for (let h = 0; h < HEADS; h++) word(`head ${h}`);
  for (let k = 0; k < LAYERS * HEADS; k++) {
    if (k % HEADS === 0) word(`layer ${k / HEADS}`);
    const label = document.createElement('label'), input = document.createElement('input'), value = document.createElement('span');
    input.type = 'radio';
    input.name = 'head';
    input.value = String(k);
    input.checked = k === head;
    input.setAttribute('aria-label', `layer ${Math.floor(k / HEADS)}, head ${k % HEADS}`);
    value.id = `error-${k}`;
    value.textContent = '\u2013';
    label.append(input, value);
    grid.append(label);
  }
  $('heads').append(grid);
  grid.addEventListener('change', (event) => {
    head = Number(event.target.value);
    if (distiller) distiller.postMessage({ job: 'head', head });
  });
}

/* ---------------------------------------------------------------- distilling */

/* tokens of the three stages and of the text; one window of 128 tokens an update: many small updates, as small budgets want */
const RUNS = {
  quick: { stages: [24576, 24576, 15360], text: 32768 },
  normal: { stages: [60416, 60416, 40960], text: 49152 },
  long: { stages: [149504, 199680, 149504], text: 163840 },
};
const PROMPT = 'Once upon a time, there was a boy called';
/* in the order in which the worker reports them */
const ROWS = [['0', 'before'], ['1a', 'half of stage 1'], ['1', 'after stage 1'], ['2a', 'a third of stage 2'], ['2b', 'two thirds of stage 2'], ['2', 'after stage 2'], ['3a', 'half of stage 3'], ['3', 'after stage 3']];
let distiller = null, ticking = 0, told = 0;
let began = 0, waited = 0, waitingSince = 0; // when the run started, how long it was paused, since when it is

function buildSamples() {
  $('samples').replaceChildren(...[['teacher', 'the teacher'], ...ROWS].map(([key, label]) => {
    const row = document.createElement('li'), name = document.createElement('b'), agreement = document.createElement('span'), kl = document.createElement('span'), words = document.createElement('p');
    row.id = `sample-${key}`;
    row.className = key === 'teacher' ? 'teacher waiting' : 'student waiting';
    name.textContent = label;
    agreement.className = 'agreement';
    kl.className = 'kl';
    row.append(name, agreement, kl, words);
    return row;
  }));
}
function drawLosses() {
  for (const stage of [1, 2, 3]) {
    const points = (shared.distil.losses && shared.distil.losses[stage]) || [], total = RUNS[shared.distil.run || $('run').value].stages[stage - 1];
    const losses = points.map((p) => p[1]), low = Math.min(...losses), high = Math.max(...losses);
    let y;
    if (stage < 3) {
      const domain = losses.length ? [low / 1.15, high * 1.15] : [10, 1000];
      y = { domain, log: true, ticks: logTicks(domain, 6), format: (v) => three.format(v) };
    } else {
      const room = losses.length ? Math.max(0.05, (high - low) * 0.08) : 0, domain = losses.length ? [low - room, high + room] : [3, 5];
      y = { domain, ticks: evenTicks(domain, 5), format: (v) => v.toFixed(1) };
    }
    const last = points[points.length - 1];
    chart(`chart-${stage}`, {
      x: { domain: [0, total], ticks: evenTicks([0, total], 4), label: 'tokens', format: (v) => (v ? speed(v) : '0') },
      y,
      series: [{ model: 'student', faint: true, points: thin(points).map((p) => [p[0], p[1]]) }, { model: 'student', points: thin(points).map((p) => [p[0], p[2]]) }],
      empty: 'not reached yet',
      summary: last ? `Loss of stage ${stage}: from ${three.format(points[0][1])} to ${three.format(last[2])} after ${count.format(last[0])} tokens` : `Loss of stage ${stage}: nothing yet`,
    });
  }
}
/* at most 400 points of a line */
const thin = (points) => (points.length <= 400 ? points : points.filter((_, i) => i % Math.ceil(points.length / 400) === 0 || i === points.length - 1));

function distilState(state, words) {
  const running = state === 'running' || state === 'paused';
  shared.distil.state = state;
  enabled('distil-start', shared.ready && !running);
  enabled('distil-pause', running);
  enabled('distil-stop', running);
  say('distil-pause', state === 'paused' ? 'Resume' : 'Pause');
  say('distil-status', words);
  $('run').disabled = running;
  if (!running) clearInterval(ticking);
}
function elapsed() {
  return (performance.now() - began - waited - (waitingSince ? performance.now() - waitingSince : 0)) / 1000;
}
function currentStage(stage) {
  for (let s = 0; s < 4; s++) {
    if (s === stage) $(`stage-${s}`).setAttribute('aria-current', 'step');
    else $(`stage-${s}`).removeAttribute('aria-current');
  }
}
const STAGE_WORDS = ['The teacher writes the training text.', 'Stage 1: the mixing matrices approach the teacher\u2019s.', 'Stage 2: each block learns the teacher\u2019s hidden states.', 'Stage 3: the whole student learns the teacher\u2019s predictions.'];

const listeners = {
  loaded() {
    const run = RUNS[shared.distil.run];
    distiller.postMessage({ job: 'distil', stages: run.stages, text: run.text, rate3: 3e-4, batch: 1, length: 128, prompt: PROMPT, head, interval: calm.matches ? 2000 : 120 });
    say('distil-status', STAGE_WORDS[0]);
    currentStage(0);
  },
  sampling({ done, total, speed: rate }) {
    $('progress-0').value = done / total;
    say('distil-speed', speed(rate));
  },
  step(s) {
    const d = shared.distil;
    d.losses[s.stage].push(...s.points);
    d.speed = s.speed;
    $(`progress-${s.stage}`).value = s.step / s.steps;
    currentStage(s.stage);
    say('distil-loss', three.format(s.average));
    say('distil-speed', speed(s.speed));
    say('distil-left', clock(s.left));
    if (d.state === 'running') say('distil-status', STAGE_WORDS[s.stage]);
    drawLosses();
  },
  matrices(m) {
    const words = `layer ${Math.floor(m.head / HEADS)}, head ${m.head % HEADS}`;
    shared.distil.errors = Array.from(m.errors);
    shared.distil.matrices = (shared.distil.matrices || 0) + 1;
    m.errors.forEach((e, k) => {
      const cell = $(`error-${k}`);
      cell.textContent = e < 10 ? e.toFixed(2) : e.toFixed(0);
      cell.parentElement.style.setProperty('--error', Math.min(1, e).toFixed(3));
    });
    if (m.head !== head) return;
    paint('matrix-teacher', m.size, m.teacher);
    paint('matrix-student', m.size, m.student);
    say('matrix-error', percent(m.errors[m.head]));
    $('matrix-teacher').setAttribute('aria-label', `Mixing matrix of the teacher, ${words}`);
    $('matrix-student').setAttribute('aria-label', `Mixing matrix of the student, ${words}: ${percent(m.errors[m.head])} off the teacher's`);
  },
  milestone(m) {
    const key = m.name === 'teacher' ? 'teacher' : ROWS[told++][0], row = $(`sample-${key}`);
    shared.distil.samples.push({ key, agreement: m.agreement, kl: m.kl, crossEntropy: m.crossEntropy, text: m.text });
    row.classList.remove('waiting');
    row.querySelector('.agreement').textContent = key === 'teacher' ? '' : `agrees ${percent(m.agreement)}`;
    row.querySelector('.kl').textContent = key === 'teacher' ? '' : `KL ${m.kl.toFixed(2)} nats`;
    row.querySelector('p').textContent = m.text.replace(/\s+/g, ' ');
  },
  paused() {
    waitingSince = performance.now();
    distilState('paused', 'Paused.');
  },
  resumed() {
    waited += performance.now() - waitingSince;
    waitingSince = 0;
    distilState('running', 'Going on.');
  },
  distilled({ stopped }) {
    const last = shared.distil.samples[shared.distil.samples.length - 1], took = elapsed();
    shared.distil.seconds = took;
    say('distil-left', stopped ? '\u2013' : clock(0));
    say('distil-time', clock(took));
    currentStage(-1);
    distilState(stopped ? 'stopped' : 'done', stopped ? 'Stopped.' : `Done in ${clock(took)}: the student\u2019s next token is the teacher\u2019s ${percent(last.agreement)} of the time.`);
  },
  failed({ message }) {
    trouble(message);
    distilState('failed', 'That did not work.');
  },
};

press('distil-start', () => {
  if (distiller) distiller.terminate();
  told = 0;
  shared.distil = { state: 'running', run: $('run').value, losses: { 1: [], 2: [], 3: [] }, samples: [] };
  for (let s = 0; s < 4; s++) $(`progress-${s}`).value = 0;
  for (const figure of ['loss', 'speed', 'left']) say(`distil-${figure}`, '\u2013');
  buildSamples();
  $('samples').hidden = false;
  $('no-samples').hidden = true;
  drawLosses();
  began = performance.now();
  waited = waitingSince = 0;
  clearInterval(ticking);
  ticking = setInterval(() => say('distil-time', clock(elapsed())), 250);
  distilState('running', 'Loading.');
  distiller = start(['teacher'], listeners);
});
press('distil-pause', () => distiller.postMessage({ job: shared.distil.state === 'paused' ? 'resume' : 'pause' }));
press('distil-stop', () => {
  distiller.postMessage({ job: 'stop' });
  if (waitingSince) {
    waited += performance.now() - waitingSince;
    waitingSince = 0;
  }
});
$('run').addEventListener('change', drawLosses);

/* ---------------------------------------------------------------- start */

say('sample-prompt', PROMPT);
buildHeads();
paintScale();
for (const id of ['matrix-teacher', 'matrix-student']) paint(id, 64, new Float32Array(64 * 64));
new ResizeObserver(() => {
  drawCost();
  drawLosses();
}).observe(document.querySelector('main'));
