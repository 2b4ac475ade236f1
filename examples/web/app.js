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
  sizes({ name, sizes }) {
    shared.cost.whole[name] = sizes;
  },
  reading({ name, done, total, left }) {
    $(`read-${name}`).value = done / total;
    say(`read-${name}-words`, `${count.format(done)} of ${count.format(total)} tokens${left > 0 ? `, ${clock(left)} left` : ''}`);
  },
  measured({ name, tokens, ms, bytes: size }) {
    shared.cost[name].push({ tokens, ms, bytes: size });
    say('cost-status', `Measured the ${name} at ${count.format(tokens)} tokens.`);
    drawCost();
  },
  'measuring done'({ stopped }) {
    for (const name of ['teacher', 'student']) shared.cost.computed[name] = computedSizes(shared.cost[name]);
    say('cost-status', stopped ? `Stopped. ${costInShort()}` : costInShort());
    shared.cost.stopped = stopped;
    shared.cost.done = true;
    busy = null;
    drawCost();
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
/* spec: x and y {domain, ticks, log, label, format}, series [{model, points [[x, y]], faint, dots, computed: points that go on dashed, with open dots}], empty:
   words when there is nothing to draw */
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
  const path = (points) => points.map(([a, b], i) => `${i ? 'L' : 'M'}${x(a).toFixed(1)} ${y(b).toFixed(1)}`).join('');
  for (const s of spec.series) {
    const group = add(svg, 'g', { class: s.model });
    if (s.points.length) add(group, 'path', { class: s.faint ? 'line faint' : 'line', d: path(s.points) });
    const computed = s.computed || [];
    if (computed.length) add(group, 'path', { class: 'line dashed', d: path([...s.points.slice(-1), ...computed]) });
    if (s.dots) {
      for (const [points, look] of [[s.points, 'dot'], [computed, 'dot open']]) {
        for (const [a, b] of points) {
          if (s.model === 'teacher') add(group, 'circle', { class: look, cx: x(a), cy: y(b), r: 4.5 });
          else add(group, 'rect', { class: look, x: x(a) - 4, y: y(b) - 4, width: 8, height: 8 });
        }
      }
    }
  }
  box.replaceChildren(svg);
  box.setAttribute('aria-label', spec.summary);
}

/* ---------------------------------------------------------------- cost of context */

const CONTEXTS = [64, 256, 1024, 4096, 16384, 65536, 262144, 1048576];
/* how far each model reads: a token costs the teacher's attention more the further it is, the whole way the square of it */
const READS = {
  quick: { teacher: 4096, student: 65536 },
  normal: { teacher: 16384, student: 1048576 },
  long: { teacher: 65536, student: 1048576 },
};
const binary = (n) => (n >= 1048576 ? `${n / 1048576}\u00a0M` : n >= 1024 ? `${n / 1024}\u00a0k` : String(n));
/* Bytes at the contexts that were not reached. Each token adds the same to what is kept: nothing to a state. */
function computedSizes(points) {
  if (points.length < 2) return [];
  const [first] = points, last = points[points.length - 1], each = (last.bytes - first.bytes) / (last.tokens - first.tokens);
  return CONTEXTS.filter((n) => n > last.tokens).map((tokens) => ({ tokens, bytes: last.bytes + (tokens - last.tokens) * each }));
}
const line = (points, key) => points.filter((p) => key in p).map((p) => [p.tokens, p[key]]);
const lines = (key) => ['teacher', 'student'].map((model) => ({ model, dots: true, points: shared.cost ? line(shared.cost[model], key) : [], computed: shared.cost ? line(shared.cost.computed[model], key) : [] }));
/* whole powers of ten that hold all values, and these at least: the axis seldom moves */
function decades(series, atLeast) {
  const all = [...atLeast, ...series.flatMap((s) => [...s.points, ...s.computed].map((p) => p[1]))];
  return [10 ** Math.floor(Math.log10(Math.min(...all)) + 1e-9), 10 ** Math.ceil(Math.log10(Math.max(...all)) - 1e-9)];
}
function drawCost() {
  const x = { domain: [64, 1048576], log: true, ticks: [64, 4096, 65536, 1048576], label: 'tokens of context', format: binary };
  const times = lines('ms'), sizes = lines('bytes');
  const timeDomain = decades(times, [0.01, 10]), sizeDomain = decades(sizes, [1e4, 1e10]);
  chart('chart-ms', { x, y: { domain: timeDomain, log: true, ticks: logTicks(timeDomain, 7), format: (v) => three.format(v) }, series: times, empty: 'press Measure', summary: `Milliseconds for one more token against tokens of context. ${costSummary()}` });
  chart('chart-bytes', { x, y: { domain: sizeDomain, log: true, ticks: logTicks(sizeDomain, 7), format: bytes }, series: sizes, empty: 'press Measure', summary: `Memory against tokens of context. ${costSummary()}` });
  if (!shared.cost) return;
  $('cost-table').replaceChildren(...CONTEXTS.map((tokens, i) => {
    const row = document.createElement('tr'), at = (list, name) => list[name].find((p) => p.tokens === tokens);
    const models = ['teacher', 'student'], cost = shared.cost;
    const cells = [
      count.format(tokens),
      ...models.map((name) => (at(cost, name) ? three.format(at(cost, name).ms) : 'n/a')),
      ...models.map((name) => (at(cost, name) ? bytes(at(cost, name).bytes) : at(cost.computed, name) ? `(${bytes(at(cost.computed, name).bytes)})` : 'n/a')),
      ...models.map((name) => (cost.whole[name][i] ? bytes(cost.whole[name][i]) : 'n/a')),
    ];
    cells.forEach((value, k) => {
      const cell = document.createElement(k ? 'td' : 'th');
      if (!k) cell.scope = 'row';
      cell.textContent = value;
      row.append(cell);
    });
    return row;
  }));
}
const ends = (name) => {
  const list = (shared.cost && shared.cost[name]) || [];
  return list.length < 2 ? null : [list[0], list[list.length - 1]];
};
function costSummary() {
  const tell = (name) => {
    const found = ends(name);
    return found && `${name}: ${found.map((p) => `${three.format(p.ms)} ms and ${bytes(p.bytes)} at ${count.format(p.tokens)}`).join(', ')}`;
  };
  const told = [tell('teacher'), tell('student')].filter(Boolean);
  return told.length ? `${told.join('. ')}.` : 'Not measured yet.';
}
function costInShort() {
  const t = ends('teacher'), s = ends('student');
  if (!t || !s) return 'Too little was read to compare.';
  const all = shared.cost.student.map((p) => p.ms), apart = Math.max(...all) / Math.min(...all) - 1;
  return `Teacher, 64 to ${binary(t[1].tokens)} tokens: ${three.format(t[0].ms)} to ${three.format(t[1].ms)}\u00a0ms, ${bytes(t[1].bytes)}. Student, 64 to ${binary(s[1].tokens)}: ${three.format(s[1].ms)}\u00a0ms within ${(100 * apart).toFixed(1)}\u00a0%, ${bytes(s[1].bytes)}.`;
}
press('cost-start', () => {
  const until = READS[$('cost-run').value];
  shared.cost = { teacher: [], student: [], computed: { teacher: [], student: [] }, whole: { teacher: [], student: [] }, until, done: false };
  busy = 'cost';
  say('cost-status', 'Reading.');
  for (const name of ['teacher', 'student']) {
    $(`read-${name}`).value = 0;
    say(`read-${name}-words`, `0 of ${count.format(until[name])} tokens`);
  }
  update();
  drawCost();
  writer.postMessage({ job: 'measure', contexts: CONTEXTS, until });
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
