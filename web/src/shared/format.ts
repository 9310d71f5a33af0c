// Numbers as people read them: three digits that count, units that fit.

const kThin = '\u202f';

export function short(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  const [factor, unit] =
    size >= 1e12 ? [1e12, 'T'] : size >= 1e9 ? [1e9, 'G'] : size >= 1e6 ? [1e6, 'M'] : size >= 1e4 ? [1e3, 'k'] : [1, ''];
  const scaled = value / factor;
  const text = unit === '' && Number.isInteger(scaled) ? String(scaled) : significant(scaled, digits);
  return unit ? `${text}${kThin}${unit}` : text;
}

export function significant(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return '–';
  if (value === 0) return '0';
  const before = Math.floor(Math.log10(Math.abs(value))) + 1;
  return value.toFixed(Math.min(8, Math.max(0, digits - before)));
}

export function bytes(value: number): string {
  if (!Number.isFinite(value)) return '–';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) {
    value /= 1024;
    ++unit;
  }
  return `${unit === 0 ? Math.round(value) : significant(value)}${kThin}${units[unit]}`;
}

/** Of a line, in Mbit/s. */
export function rate(mbit_s: number): string {
  if (!Number.isFinite(mbit_s)) return '–';
  if (mbit_s >= 1000) return `${Number(significant(mbit_s / 1000))}${kThin}Gbit/s`;
  return `${mbit_s < 0.005 ? 0 : mbit_s < 10 ? mbit_s.toFixed(2) : Number(significant(mbit_s))}${kThin}Mbit/s`;
}

export function percent(ratio: number, digits = 1): string {
  return Number.isFinite(ratio) ? `${(100 * ratio).toFixed(digits)}${kThin}%` : '–';
}

export function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '–';
  const s = Math.max(0, Math.round(seconds));
  const [d, h, m] = [Math.floor(s / 86400), Math.floor(s / 3600) % 24, Math.floor(s / 60) % 60];
  if (d > 0) return `${d}${kThin}d ${h}${kThin}h`;
  if (h > 0) return `${h}${kThin}h ${m}${kThin}min`;
  if (m > 0) return s < 600 ? `${m}${kThin}min ${s % 60}${kThin}s` : `${m}${kThin}min`;
  return `${s}${kThin}s`;
}

export function clock(unixSeconds: number): string {
  return new Date(unixSeconds * 1000).toLocaleTimeString([], { hour12: false });
}

export function dateAndClock(unixSeconds: number): string {
  return new Date(unixSeconds * 1000).toLocaleString([], { dateStyle: 'medium', timeStyle: 'medium', hour12: false });
}

export function plural(count: number, one: string, many = `${one}s`): string {
  return `${short(count)} ${count === 1 ? one : many}`;
}
