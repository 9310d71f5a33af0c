// Light or dark: the system's choice until the reader makes one, which the browser then keeps.
// Storage may be refused (private windows); the page then forgets, and works.

export type Theme = 'light' | 'dark';

const kKey = 'pelago.theme';
const system = window.matchMedia('(prefers-color-scheme: dark)');
const listeners = new Set<(theme: Theme) => void>();

export function recall(key: string): string | null {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

/** Returns whether the browser kept it. */
export function keep(key: string, value: string): boolean {
  try {
    localStorage.setItem(key, value);
    return true;
  } catch {
    return false;
  }
}

export function currentTheme(): Theme {
  const chosen = recall(kKey);
  if (chosen === 'light' || chosen === 'dark') return chosen;
  return system.matches ? 'dark' : 'light';
}

function apply() {
  const theme = currentTheme();
  document.documentElement.dataset.theme = theme;
  for (const listener of listeners) listener(theme);
}

export function startTheme() {
  apply();
  system.addEventListener('change', apply);
  window.addEventListener('storage', apply);
}

export function toggleTheme() {
  const next: Theme = currentTheme() === 'dark' ? 'light' : 'dark';
  keep(kKey, next);
  document.documentElement.dataset.theme = next;
  for (const listener of listeners) listener(next);
}

/** Calls back at every change; returns how to stop that. */
export function onTheme(listener: (theme: Theme) => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** A colour of theme.css as the browser computes it now, for canvases. */
export function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
