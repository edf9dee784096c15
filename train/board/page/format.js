// How numbers, times and sizes are written.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const NONE = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

export const count = (value) => (known(value) ? whole.format(value) : NONE);

/** Four decimals, as losses are told. */
export const loss = (value) => (known(value) ? value.toFixed(4) : NONE);

/** The settings of the model that a candidate has of its own, as "softcap 0, qk_norm on"; "" where it has none. */
export const settings = (values) => Object.entries(values ?? {}).map(([name, value]) =>
  `${name} ${value === true ? "on" : value === false ? "off" : value}`).join(", ");

/** Any number in few characters. */
export function number(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(2);
  if (Number.isInteger(value) || size >= 1e4) return whole.format(value);
  return String(Number(value.toPrecision(size >= 1 ? 5 : 4)));
}

/** 1,317,120 → 1.32 M */
export function short(value) {
  if (!known(value)) return NONE;
  const power = value >= 1e9 ? 9 : value >= 1e6 ? 6 : value >= 1e4 ? 3 : 0;
  return power ? `${Number((value / 10 ** power).toPrecision(3))} ${{ 3: "k", 6: "M", 9: "G" }[power]}` : count(value);
}

/** Milliseconds as 1:02:03. */
export function duration(ms) {
  if (!known(ms)) return NONE;
  const seconds = Math.max(0, Math.round(ms / 1000)), pad = (n) => String(n).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(seconds % 60)}` : `${minutes}:${pad(seconds % 60)}`;
}

export function bytes(value) {
  if (!known(value)) return NONE;
  const unit = value >= 2 ** 30 ? 3 : value >= 2 ** 20 ? 2 : value >= 1024 ? 1 : 0;
  return `${(value / 1024 ** unit).toFixed(unit ? 1 : 0)} ${["B", "KiB", "MiB", "GiB"][unit]}`;
}

/** Milliseconds since the epoch of a time in seconds or in ISO 8601; null where unknown. */
export function moment(value) {
  const ms = known(value) ? value * 1000 : Date.parse(value);
  return Number.isFinite(ms) ? ms : null;
}

export function time(value) {
  const ms = moment(value);
  return ms === null ? NONE : `${new Date(ms).toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

/** "12 s ago" */
export function ago(value, now = Date.now()) {
  const ms = moment(value);
  if (ms === null) return NONE;
  const seconds = Math.max(0, Math.round((now - ms) / 1000));
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return `${seconds} s ago`;
}

/** Names of candidates by id; where several share a name, as siblings can, the id's number follows it. */
export function labels(candidates) {
  const often = new Map();
  for (const { name } of candidates) often.set(name, (often.get(name) ?? 0) + 1);
  return new Map(candidates.map(({ id, name }) =>
    [id, !name ? id : often.get(name) === 1 ? name : `${name} #${id.split("_").at(-1)}`]));
}

/** A setting's value in few characters. */
export const said = (value) => (typeof value === "number" ? number(value)
  : typeof value === "boolean" ? (value ? "on" : "off") : plain(value));

/** Any value of a setting as text. */
export function plain(value) {
  if (value === null || value === undefined) return NONE;
  return typeof value === "object" ? JSON.stringify(value) : typeof value === "number" ? String(value) : `${value}`;
}
