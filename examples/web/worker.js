/* worker.js: the models of one job, off the page's thread. The page starts one worker to write and to measure and another to distil.
   Messages in: {job: 'load' | 'write' | 'measure' | 'distil' | 'stop' | 'pause' | 'resume' | 'head', ...}; messages out: {type, ...}. */
'use strict';
importScripts('mohawk.js');

let wasm, context;
const models = {}, about = {};
let stop = false;           // the job in progress should end
let resume = null;          // set while paused: goes on
let paused = null;          // promise of it

/* ---------------------------------------------------------------- the module */

/* web_NAME(...) of web.c; strings are lent to it for the call. Throws the library's sentence when something went wrong. */
function call(name, ...values) {
  const lent = [];
  const result = wasm['_web_' + name](...values.map((value) => {
    if (typeof value !== 'string') return value;
    const bytes = new TextEncoder().encode(value), at = wasm._malloc(bytes.length + 1);
    wasm.HEAPU8.set(bytes, at);
    wasm.HEAPU8[at + bytes.length] = 0;
    lent.push(at);
    return at;
  }));
  lent.forEach((at) => wasm._free(at));
  const message = wasm.UTF8ToString(wasm._web_message(context));
  if (message) throw new Error(message);
  return result;
}
const text = (at) => wasm.UTF8ToString(at);
const numbers = (at, n) => Array.from(wasm.HEAPF64.subarray(at / 8, at / 8 + n));
const floats = (at, n) => wasm.HEAPF32.slice(at / 4, at / 4 + n);

/* lets messages in; setTimeout would wait for milliseconds */
const channel = new MessageChannel();
const turns = [];
channel.port1.onmessage = () => turns.shift()();
const turn = () => new Promise((go) => {
  turns.push(go);
  channel.port2.postMessage(0);
});

async function bytesOf(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return new Uint8Array(await answer.arrayBuffer());
}

/* a module of one function that makes a vector */
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11);

/* one file a model, which stays in the module's memory */
async function load(names) {
  if (!WebAssembly.validate(SIMD)) throw new Error('This browser has no WebAssembly SIMD: a version from 2021 or later has it (Safari: 2023).');
  wasm = await createMohawk();
  context = wasm._web_create();
  for (const name of names) {
    const bytes = await bytesOf(`${name}.safetensors`), at = wasm._malloc(bytes.length);
    if (!at) throw new Error(`there is no memory for the ${name}`);
    wasm.HEAPU8.set(bytes, at);
    const model = models[name] = call('load', context, at, bytes.length);
    about[name] = {
      parameters: call('parameters', model),
      layers: call('layers', model),
      heads: call('heads', model),
      vocabulary: call('vocabulary', model),
      weights: text(call('weights', model)),
      bytes: bytes.length,
    };
  }
  postMessage({ type: 'loaded', models: about, isa: text(call('isa', context)) });
}

/* ---------------------------------------------------------------- writing */

/* Each model writes for a frame's time in turn; its speed counts its own time only. */
async function write({ prompt, temperature, seed, tokens }) {
  const writers = Object.keys(models).map((name) => {
    const at = call('session', models[name], call('count', models[name], prompt) + tokens + 2, 0);
    return { name, at, ids: [], seconds: 0, done: false };
  });
  try {
    for (const w of writers) call('prompt', w.at, prompt);
    while (!stop && writers.some((w) => !w.done)) {
      for (const w of writers.filter((w) => !w.done)) {
        const start = performance.now();
        let more = '', now = start;
        const ids = [];
        while (!w.done && now - start < 12) {
          const id = call('next', w.at, temperature, 0.95, seed);
          more += text(call('text', w.at));
          if (id >= 0) ids.push(id);
          now = performance.now();
          w.done = id < 0 || w.ids.length + ids.length >= tokens;
          w.ended = id < 0;
        }
        w.seconds += (now - start) / 1000;
        w.ids.push(...ids);
        postMessage({ type: 'text', name: w.name, text: more, ids, count: w.ids.length, speed: w.ids.length / w.seconds, bytes: call('state', w.at) });
      }
      await turn();
    }
  } finally {
    writers.forEach((w) => wasm._web_session_end(w.at));
  }
  postMessage({ type: 'written', stopped: stop, ended: writers.filter((w) => w.ended).map((w) => w.name) });
}

/* ---------------------------------------------------------------- measuring */

/* Each model reads on to every context of its own, until[name] at most. There, the tokens around that context are written one by one, again and again from
   a kept state: the time of a token is the mean over the fastest quarter of these runs, since a page's clock has steps of a tenth of a millisecond. */
async function measure({ contexts, until }) {
  const TOKENS = 64, RUNS = 64, RUN_MS = 250, ALL_MS = 1500, WARM_MS = 700; // browsers compile what runs often once more
  const readers = Object.keys(models).map((name) => ({ name, at: call('session', models[name], until[name] + TOKENS, 1), read: 0, part: 256 }));
  let told = 0;
  async function read(r, to) {
    while (r.read < to && !stop) {
      const n = Math.min(r.part, to - r.read), start = performance.now();
      call('read', r.at, n, about[r.name].vocabulary);
      const now = performance.now(), each = (now - start) / n, end = until[r.name];
      r.each = r.each ? 0.9 * r.each + 0.1 * Math.min(each, 4 * r.each) : each; // a pause of the machine counts little
      r.read += n;
      if (now - start > 150 && r.part > 32) r.part /= 2; // Stop should not wait long
      if (now - told > 250 || r.read >= end) {
        /* a token's time grows as the context of attention does, and not at all with a state */
        const left = r.name === 'student' ? r.each * (end - r.read) : r.read < 2048 ? NaN : r.each * (end * end - r.read * r.read) / (2 * r.read);
        postMessage({ type: 'reading', name: r.name, done: r.read, total: end, left: left / 1000 });
        told = now;
      }
      await turn();
    }
  }
  /* milliseconds a token; the session is back at from then */
  async function run(r, from) {
    const start = performance.now();
    let n = 0, took = 0;
    while (n < TOKENS && took < RUN_MS) {
      call('read', r.at, 1, about[r.name].vocabulary);
      n++;
      took = performance.now() - start;
    }
    call('back', r.at, from);
    await turn();
    return took / n;
  }
  try {
    for (const r of readers) postMessage({ type: 'sizes', name: r.name, sizes: contexts.map((n) => call('session_size', context, models[r.name], n)) });
    for (const length of contexts) {
      for (const r of readers.filter(({ name }) => length <= until[name])) {
        const from = length - TOKENS / 2;
        let times = [], began = performance.now();
        await read(r, from);
        if (stop) break;
        call('keep', r.at);
        if (length === contexts[0]) while (!stop && performance.now() - began < WARM_MS) await run(r, from);
        began = performance.now();
        while (!stop && (times.length < 3 || (times.length < RUNS && performance.now() - began < ALL_MS))) times.push(await run(r, from));
        if (stop) break;
        r.read = from;
        await read(r, length);
        times = times.sort((a, b) => a - b).slice(0, Math.ceil(times.length / 4));
        postMessage({ type: 'measured', name: r.name, tokens: length, ms: times.reduce((a, b) => a + b) / times.length, bytes: call('state', r.at) });
      }
      if (stop) break;
    }
  } finally {
    readers.forEach((r) => wasm._web_session_end(r.at));
  }
  postMessage({ type: 'measuring done', stopped: stop });
}

/* ---------------------------------------------------------------- distilling */

const COST = [0, 1, 1.2, 2.8]; // of a token in each stage, about
const HELD_OUT = 4096;
const MOMENTS = { 1: [0.5, 1], 2: [1 / 3, 2 / 3, 1], 3: [0.5, 1] }; // of each stage: a sample is drawn
let run = null;

/* distance of every head's matrix from the teacher's, relative to the teacher's size */
function errors(student) {
  const size = run.probe * run.probe;
  return Float32Array.from({ length: run.layers * run.heads }, (_, k) => {
    let difference = 0, whole = 0;
    for (let i = k * size; i < (k + 1) * size; i++) {
      difference += (student[i] - run.teacherMatrices[i]) ** 2;
      whole += run.teacherMatrices[i] ** 2;
    }
    return Math.sqrt(difference / whole);
  });
}
function showMatrices() {
  if (!run || !run.matrices) return;
  const size = run.probe * run.probe, student = floats(call('matrices', run.matrices, run.student), run.layers * run.heads * size);
  const at = run.head * size;
  postMessage({ type: 'matrices', head: run.head, size: run.probe, errors: errors(student), teacher: run.teacherMatrices.slice(at, at + size), student: student.slice(at, at + size) });
  run.shown = performance.now();
}

function sample(model) {
  const s = call('session', model, 128, 0);
  let out = '';
  call('prompt', s, run.prompt);
  for (let i = 0; i < 28 && call('next', s, 0.7, 0.9, 7) >= 0; i++) out += text(call('text', s));
  wasm._web_session_end(s);
  return out;
}
function milestone(name, model) {
  const [crossEntropy, kl, agreement] = numbers(call('evaluate', model, models.teacher, run.heldOut, 128, 16), 3);
  postMessage({ type: 'milestone', name, crossEntropy, kl, agreement, text: sample(model) });
}

async function breathe() {
  await turn();
  if (paused) {
    postMessage({ type: 'paused' });
    await paused;
    if (!stop) postMessage({ type: 'resumed' });
  }
}

async function distil({ stages, text: wanted, rate3, batch, length, prompt, head, interval }) {
  const teacher = models.teacher, PIECE = 4096;
  const ids = wasm._malloc(4 * (wanted + HELD_OUT));
  if (!ids) throw new Error('there is no memory for the text');
  run = { prompt, head, probe: call('probe_tokens'), layers: about.teacher.layers, heads: about.teacher.heads, shown: 0 };
  call('sample_text', teacher, ids, 0, HELD_OUT, 1000003);
  run.heldOut = call('text_from', context, teacher, ids, HELD_OUT);
  run.matrices = call('probe', context, teacher, run.heldOut);
  run.student = call('student', context, teacher);
  run.teacherMatrices = floats(call('matrices', run.matrices, teacher), run.layers * run.heads * run.probe * run.probe);
  showMatrices();
  milestone('teacher', teacher);
  milestone('student', run.student);
  let n = 0, spent = 0;
  while (n < wanted && !stop) {
    const start = performance.now();
    n = call('sample_text', teacher, ids, n, Math.min(PIECE, wanted - n), 1 + n);
    spent += performance.now() - start;
    postMessage({ type: 'sampling', done: n, total: wanted, speed: n / spent * 1000 });
    await breathe();
  }
  if (!stop) {
    stages.forEach((tokens, i) => call('stage', i + 1, tokens, i === 2 ? rate3 : 0));
    const trainer = call('distil', context, teacher, run.student, call('text_from', context, teacher, ids, n), batch, length, 1);
    wasm._free(ids);
    let stage = 0, seconds = 0, told = 0, moments = [], points = [];
    while (!stop) {
      const start = performance.now();
      if (!call('step', trainer)) break;
      const [now, done, step, steps, tokens, total, loss, average, , , rate] = numbers(call('progress', trainer), 11);
      if (now !== stage) {
        stage = now;
        seconds = 0;
        moments = MOMENTS[stage].slice();
      }
      seconds += (performance.now() - start) / 1000;
      points.push([tokens, loss, average]);
      const speed = tokens / seconds;
      let left = (total - tokens) / speed;
      for (let s = stage; s < 3; s++) left += stages[s] * COST[s + 1] / COST[stage] / speed;
      if (performance.now() - told > interval || done) {
        postMessage({ type: 'step', stage, done: done === 1, step, steps, tokens, total, points, average, rate, speed, left });
        points = [];
        told = performance.now();
        showMatrices();
      }
      if (moments.length && step / steps >= moments[0] - 1e-9) {
        moments.shift();
        milestone('student', run.student);
      }
      await breathe();
    }
  }
  showMatrices();
  postMessage({ type: 'distilled', stopped: stop });
}

/* ---------------------------------------------------------------- messages */

const jobs = { load: ({ models: names }) => load(names), write, measure, distil };

onmessage = ({ data }) => {
  switch (data.job) {
    case 'stop':
      stop = true;
      if (resume) resume();
      paused = resume = null;
      break;
    case 'pause':
      if (!paused) paused = new Promise((go) => { resume = go; });
      break;
    case 'resume':
      if (resume) resume();
      paused = resume = null;
      break;
    case 'head':
      if (run) {
        run.head = data.head;
        showMatrices();
      }
      break;
    default:
      stop = false;
      jobs[data.job](data).catch((error) => postMessage({ type: 'failed', job: data.job, message: error.message }));
  }
};
