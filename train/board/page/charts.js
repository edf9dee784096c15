// The table of charts, and how the lines of each come from a run.

import { Column } from "./column.js";
import { colourOf, kind, kinds, LINES, shortName } from "./colours.js";
import { labels, number } from "./format.js";
import { heat, timeline } from "./heatmap.js";
import { areas } from "./paint.js";

/**
 * id, title, unit · keys: {key: what its line is called}; one that ends with a dot stands for all that begin with it
 * kind: line (default), activation, stack, heat, timeline; the last three show one run, not several
 * through: its line goes on from one training of a search to the next · aside: a key for which the axis makes no room
 * derive(run): the columns by the key's name, where they are not those of the record
 * log: logarithmic at first · zero: the axis reaches to 0 · gaps: missing values are marked · marks: those of the run
 * thresholds(config): dashed lines · plain: no logarithmic axis · wide, full: takes two places, or all · high: higher
 */
export const CHARTS = [
  { id: "loss", title: "Loss", unit: "nats a token", keys: { loss: "train", val_loss: "val" }, wide: true, high: true,
    marks: true, gaps: ["loss"] },
  { id: "throughput", title: "Throughput", unit: "tokens/s", keys: { tokens_per_sec: "tokens/s" }, kind: "activation",
    through: true, zero: true, high: true },
  { id: "grad_norm", title: "Gradient norm", keys: { grad_norm: "norm" }, log: true, gaps: ["grad_norm"],
    thresholds: (config) => (config.train?.spike_threshold ? [config.train.spike_threshold] : []) },
  { id: "lr", title: "Learning rate", keys: { lr: "rate" }, zero: true },
  { id: "step_time", title: "Step time", unit: "ms", keys: { ms_per_iter: "step" }, through: true, zero: true },
  { id: "timing", title: "Step time by part", unit: "ms", kind: "stack", zero: true, plain: true,
    keys: { timing_data_ms: "data", timing_fwd_ms: "forward", timing_bwd_ms: "backward", timing_grad_norm_ms: "norm",
            timing_optim_ms: "optimizer", timing_flush_ms: "flush" } },
  { id: "perplexity", title: "Perplexity", keys: { loss: "train", val_loss: "val" }, log: true,
    derive: (run) => each(run, ["loss", "val_loss"], Math.exp) },
  { id: "gap", title: "Train/val gap", unit: "val − train", keys: { val_loss: "gap", loss: null }, derive: gap },
  { id: "clip_coef", title: "Clipping", unit: "what the gradient is multiplied by", keys: { clip_coef: "coefficient" },
    zero: true },
  { id: "clip_pct", title: "Clipped steps", unit: "% of the last hundred", keys: { clip_pct: "clipped" }, through: true,
    zero: true },
  { id: "memory", title: "GPU memory", unit: "MiB", through: true, zero: true, aside: "gpu_vram_total_mb",
    keys: { gpu_vram_used_mb: "used", gpu_mem_pool_mb: "pool", gpu_vram_total_mb: "total" } },
  { id: "gpu", title: "GPU utilization", unit: "%", keys: { gpu_util_pct: "busy" }, through: true, zero: true },
  { id: "ops", title: "Operations a step", keys: { gpu_ops_count: "operations" }, through: true, zero: true },
  { id: "cusum", title: "Change points (CUSUM)", zero: true,
    keys: { cusum_grad: "gradient", cusum_clip: "clipping", cusum_tps: "speed", cusum_val: "val",
            cusum_flush: "waiting", cusum_memory: "memory" },
    thresholds: (config) => (config.monitor?.cusum_sensitivity ? [config.monitor.cusum_sensitivity] : []) },
  { id: "weight_entropy", title: "Weight entropy", unit: "bits", keys: { weight_entropy: "entropy" } },
  { id: "effective_rank", title: "Effective rank", keys: { effective_rank: "rank" } },
  { id: "free_energy", title: "Free energy", keys: { free_energy: "free energy" } },
  { id: "fitness", title: "Fitness", keys: { fitness_score: "fitness" } },
  { id: "heat_capacity", title: "Heat capacity", unit: "d loss / d rate", keys: { heat_capacity: "heat capacity" } },
  { id: "complexity", title: "Complexity", keys: { complexity_score: "complexity" }, through: true },
  { id: "mutual", title: "Mutual information", unit: "nats",
    keys: { mi_input_repr: "input", mi_repr_output: "output", mi_compression: "compression" } },
  { id: "batch", title: "Batch size", unit: "sequences", keys: { adaptive_batch_size: "batch" }, through: true,
    zero: true },
  { id: "loss_scale", title: "Loss scale", keys: { loss_scale: "scale" }, through: true, log: true },
  { id: "layers", title: "Gradient norm by layer", kind: "heat", keys: { "per_layer_grad_norms.": "" }, plain: true },
];

/** Charts of a search, beside its tree and tables. */
export const SEARCH_CHARTS = [
  { id: "timeline", title: "Trainings", kind: "timeline", keys: { loss: "candidate" }, plain: true, full: true },
  { id: "population", title: "Population entropy", unit: "bits", through: true,
    keys: { population_entropy: "entropy" }, zero: true },
  { id: "diversity", title: "Architecture diversity", through: true,
    keys: { architecture_diversity: "diversity" }, zero: true },
];

const ONE_RUN = ["stack", "heat", "timeline"];
const NEEDED = ["elapsed_ms", "adaptive_batch_size", "symbio_replicate"]; // for the x axis, and to part trainings

/** The keys that these charts need of a run. */
export function keysOf(specs, run) {
  const wanted = [...NEEDED, ...specs.flatMap((spec) => Object.keys(spec.keys))];
  const found = wanted.flatMap((key) => (key.endsWith(".") ? run.under(key) : run.has(key) ? [key] : []));
  return [...new Set(found)];
}

/**
 * What a chart shows of these runs: {lines, extra}, or null where there is nothing to show.
 * runs: [{run, colour, name}]; how: {smooth, place(run)}.
 */
export function content(spec, runs, how) {
  const several = runs.length > 1;
  if (several && ONE_RUN.includes(spec.kind)) return null;
  const lines = runs.flatMap((one) => KINDS[several ? "line" : spec.kind ?? "line"](spec, one, how, several));
  const there = (line) => line.last.some((value) => value !== null) || (line.gaps && line.missing.some(Boolean));
  if (!lines.some(there)) return null;
  const config = runs[0].run.config, extra = { thresholds: spec.thresholds?.(config) ?? [] };
  if (spec.kind === "stack") extra.paint = areas;
  if (spec.kind === "heat") Object.assign(extra, heat(lines));
  if (spec.kind === "timeline") Object.assign(extra, timeline(runs[0].run, how.place(runs[0].run)));
  return extra.rows?.length === 0 ? null : { lines, extra };
}

const KINDS = {
  line: (spec, { run, colour, name }, how, several) => Object.entries(spec.keys).filter(([, label]) => label !== null)
    .flatMap(([key, label], i) => {
      const column = spec.derive ? spec.derive(run)[key] : run.column(key);
      if (!column?.length) return [];
      const alone = Object.keys(spec.keys).length === 1 || spec.derive === gap;
      return [line(spec, key, run, column, how, {
        label: several ? (alone ? name : `${name} ${label}`) : label, title: several ? `${run.id} ${label}` : label,
        colour: several ? colour : LINES[i], dash: several && i ? DASHES[i % DASHES.length] : undefined })];
    }),

  activation: (spec, { run }, how) => {
    const [key] = Object.keys(spec.keys), column = run.column(key).map((value) => value), parts = new Map();
    for (const span of run.activations()) {
      if (!parts.has(span.value)) parts.set(span.value, []);
      parts.get(span.value).push(span);
    }
    const order = kinds([...parts.keys()]), place = ([activation]) => order.indexOf(kind(activation, order));
    return [...parts].sort((a, b) => place(a) - place(b)).map(([activation, spans]) => {
      const part = new Column();
      for (const { from, to } of spans) {
        column.step.forEach((step, i) => { if (step >= from && step <= to) part.copy(column, i); });
        part.add(to + 0.5, null, 0); // what is between its spans is another's
      }
      return line(spec, key, run, part, { ...how, keep: true },
        { label: shortName(activation), title: activation, colour: colourOf(kind(activation, order)) });
    }).filter((each) => each.last.some((value) => value !== null));
  },

  stack: (spec, { run }, how) => {
    let below = null;
    return Object.entries(spec.keys).flatMap(([key, label], i) => {
      const own = run.column(key);
      if (!own.length) return [];
      const under = below, sum = own.map((value, at) => value + (under?.last[at] ?? 0));
      below = sum;
      const flat = new Column({ ...sum, min: sum.last, max: sum.last });
      return [line(spec, key, run, flat, { ...how, smooth: 0, whole: true }, { label, colour: LINES[i], hidden: true,
        say: (_, at) => number(own.last[at]) })];
    });
  },

  heat: (spec, { run }, how) => run.under(Object.keys(spec.keys)[0]).map((key) => line(spec, key, run, run.column(key),
    { ...how, smooth: 0, whole: true }, { label: key.slice(key.indexOf(".") + 1), hidden: true })),

  timeline: (spec, { run }, how) => {
    const spans = run.trainings(), names = labels(run.candidates);
    const value = (step) => spans.findLast((span) => span.from <= step)?.value;
    const say = (_, at) => {
      const id = value(run.column("loss").step[at]);
      return id ? names.get(id) ?? id : "the winner's training";
    };
    return [line(spec, "loss", run, run.column("loss"), { ...how, smooth: 0, whole: true, keep: true },
      { label: "", hidden: true, say })];
  },
};

const DASHES = [undefined, [6, 3], [2, 2], [8, 3, 2, 3]];

/** A line of a column: nulls of what is measured now and then are left out, gaps in what is measured always stay. */
function line(spec, key, run, column, { smooth, place, whole = spec.through, keep = false }, more) {
  const gaps = (spec.gaps?.includes(key) && !run.entry.historic) ?? false;
  const kept = gaps || keep ? column : column.map((value) => value);
  const { to } = place(run), { step, min, max, last, missing } = whole ? kept : parted(kept, run);
  const by = key === "val_loss" ? 0 : smooth; // which is smooth as it is, and known now and then only
  return { x: step.map(to), y: by ? smoothed(last, by) : last, min, max, last, missing, smoothed: by > 0, gaps,
           aside: key === spec.aside, wide: min.some((value, i) => value !== max[i]), ...more };
}

/** The column with an empty place between the trainings of a search, which a line must not connect. */
function parted(column, run) {
  const spans = run.trainings(), replicates = run.column("symbio_replicate");
  if (spans.length < 2 && !replicates.length) return column;
  const result = new Column();
  let at = 0, before = null;
  column.step.forEach((step, i) => {
    while (at + 1 < spans.length && spans[at + 1].from <= step) at++;
    const training = `${at} ${spans[at]?.value === null ? "" : replicates.at(step)}`;
    if (before !== null && training !== before) result.add(step - 0.5, null, 0);
    before = training;
    result.copy(column, i);
  });
  return result;
}

/** Exponential moving average, without the pull towards zero at the beginning, which a gap ends. */
function smoothed(values, by) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null) { sum = weight = 0; return null; }
    sum = by * sum + (1 - by) * value;
    weight = by * weight + 1 - by;
    return sum / weight;
  });
}

const each = (run, keys, change) => Object.fromEntries(keys.map((key) => [key, run.column(key).map(change)]));

function gap(run) {
  const train = run.column("loss"), val = run.column("val_loss");
  return { val_loss: train.length ? val.map((value, i) => value - train.at(val.step[i])) : new Column() };
}
