// Markdown as a tree of plain values. The page draws the tree with elements and text nodes, so
// nothing in a model's answer can become markup or script; a link leads only to http, https and
// mailto addresses. The dialect is what models write: headings, paragraphs, lists, code, quotes,
// tables, rules, emphasis. It reads any prefix of an answer without failing, since answers stream:
// a fence without its end is code to the end. Nesting and work are bounded: text of any kind costs
// time in proportion to its length.

export type Inline =
  | { kind: 'text'; text: string }
  | { kind: 'code'; text: string }
  | { kind: 'strong' | 'emphasis' | 'strike'; children: Inline[] }
  | { kind: 'link'; href: string; children: Inline[] }
  | { kind: 'break' };

export type Block =
  | { kind: 'heading'; level: number; children: Inline[] }
  | { kind: 'paragraph'; children: Inline[] }
  | { kind: 'code'; language: string; text: string; is_open: boolean }
  | { kind: 'list'; is_ordered: boolean; start: number; items: Block[][] }
  | { kind: 'quote'; children: Block[] }
  | { kind: 'table'; head: Inline[][]; align: ('left' | 'center' | 'right' | null)[]; rows: Inline[][][] }
  | { kind: 'rule' };

const kDepthMax = 12;
const kLinkMax = 4096; // characters of a link, text and address: what is looked at from each bracket

const kFence = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$/;
const kHeading = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const kRule = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const kItem = /^( {0,9})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const kQuote = /^ {0,3}> ?/;
const kTableRule = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

function indent(line: string): number {
  return line.length - line.trimStart().length;
}

function isBlank(line: string): boolean {
  return line.trim() === '';
}

export function parseMarkdown(text: string): Block[] {
  return parseBlocks(text.replaceAll('\r\n', '\n').replaceAll('\t', '    ').split('\n'), 0);
}

function parseBlocks(lines: string[], depth: number): Block[] {
  const blocks: Block[] = [];
  let i = 0;
  while (i < lines.length) {
    const line = lines[i];
    if (isBlank(line)) {
      ++i;
      continue;
    }
    const fence = kFence.exec(line);
    if (fence) {
      const end = fenceEnd(lines, i + 1, fence[2]);
      const body = lines.slice(i + 1, end).map((each) => each.slice(Math.min(fence[1].length, indent(each))));
      blocks.push({ kind: 'code', language: fence[3].trim().split(/\s/)[0] ?? '', text: body.join('\n'), is_open: end === lines.length });
      i = end + 1;
      continue;
    }
    const heading = kHeading.exec(line);
    if (heading) {
      blocks.push({ kind: 'heading', level: heading[1].length, children: parseInline(heading[2] ?? '') });
      ++i;
      continue;
    }
    if (kRule.test(line)) {
      blocks.push({ kind: 'rule' });
      ++i;
      continue;
    }
    if (depth < kDepthMax && kQuote.test(line)) {
      const inside: string[] = [];
      while (i < lines.length && (kQuote.test(lines[i]) || (!isBlank(lines[i]) && !startsBlock(lines[i])))) inside.push(lines[i++].replace(kQuote, ''));
      blocks.push({ kind: 'quote', children: parseBlocks(inside, depth + 1) });
      continue;
    }
    if (depth < kDepthMax && kItem.test(line)) {
      const [list, next] = parseList(lines, i, depth);
      blocks.push(list);
      i = next;
      continue;
    }
    if (line.includes('|') && i + 1 < lines.length && lines[i + 1].includes('-') && lines[i + 1].includes('|') && kTableRule.test(lines[i + 1])) {
      const [table, next] = parseTable(lines, i);
      blocks.push(table);
      i = next;
      continue;
    }
    const begin = i++;
    while (i < lines.length && !isBlank(lines[i]) && !startsBlock(lines[i])) ++i;
    blocks.push({ kind: 'paragraph', children: parseInline(lines.slice(begin, i).map((each, k) => (k === 0 ? each.trimStart() : each)).join('\n')) });
  }
  return blocks;
}

function startsBlock(line: string): boolean {
  if (kFence.test(line) || kHeading.test(line) || kRule.test(line) || kQuote.test(line)) return true;
  const item = kItem.exec(line);
  // "1986. A good year" within a paragraph is no list.
  return item !== null && (/[-*+]|^1[.)]/.test(item[2]) || item[2] === '1.') && item[0].length < line.length;
}

function fenceEnd(lines: string[], from: number, fence: string): number {
  for (let i = from; i < lines.length; ++i) {
    const trimmed = lines[i].trim();
    if (trimmed.length >= fence.length && trimmed[0] === fence[0] && [...trimmed].every((c) => c === fence[0])) return i;
  }
  return lines.length;
}

function parseList(lines: string[], from: number, depth: number): [Block, number] {
  const first = kItem.exec(lines[from])!;
  const is_ordered = /\d/.test(first[2]);
  const items: string[][] = [];
  let inner = 0; // column of the item's text
  let i = from;
  while (i < lines.length) {
    const line = lines[i];
    const item = kItem.exec(line);
    if (item && item[1].length < Math.max(2, inner) && item[1].length <= first[1].length + 1) {
      if (/\d/.test(item[2]) !== is_ordered) break;
      inner = item[1].length + item[2].length + Math.min(4, Math.max(1, item[3].length));
      items.push([line.slice(item[0].length)]);
      ++i;
    } else if (isBlank(line)) {
      let next = i + 1;
      while (next < lines.length && isBlank(lines[next])) ++next;
      const follows = next < lines.length && (indent(lines[next]) >= inner || (kItem.test(lines[next]) && /\d/.test(kItem.exec(lines[next])![2]) === is_ordered));
      if (!follows) break;
      items.at(-1)!.push('');
      i = next;
    } else if (indent(line) >= Math.min(inner, 2) && (indent(line) >= inner || !startsBlock(line) || item)) {
      items.at(-1)!.push(line.slice(Math.min(inner, indent(line))));
      ++i;
    } else if (!isBlank(lines[i - 1]) && !startsBlock(line)) {
      items.at(-1)!.push(line.trimStart());
      ++i;
    } else {
      break;
    }
  }
  return [{ kind: 'list', is_ordered, start: is_ordered ? parseInt(first[2], 10) : 1, items: items.map((item) => parseBlocks(item, depth + 1)) }, i];
}

function cells(line: string): string[] {
  const parts: string[] = [];
  let cell = '';
  let in_code = false;
  const row = line.trim().replace(/^\|/, '').replace(/\|$/, '');
  for (let i = 0; i < row.length; ++i) {
    if (row[i] === '\\' && row[i + 1] === '|') cell += row[++i];
    else if (row[i] === '|' && !in_code) {
      parts.push(cell.trim());
      cell = '';
    } else {
      if (row[i] === '`') in_code = !in_code;
      cell += row[i];
    }
  }
  parts.push(cell.trim());
  return parts;
}

function parseTable(lines: string[], from: number): [Block, number] {
  const head = cells(lines[from]);
  const align = cells(lines[from + 1]).map((cell) => {
    const [left, right] = [cell.startsWith(':'), cell.endsWith(':')];
    return left && right ? 'center' : right ? 'right' : left ? 'left' : null;
  });
  const rows: Inline[][][] = [];
  let i = from + 2;
  for (; i < lines.length && lines[i].includes('|') && !isBlank(lines[i]); ++i) {
    const row = cells(lines[i]).slice(0, head.length);
    rows.push(head.map((_, k) => parseInline(row[k] ?? '')));
  }
  return [{ kind: 'table', head: head.map((cell) => parseInline(cell)), align, rows }, i];
}

/** The address, if a link may lead there. */
export function safeHref(address: string): string | null {
  try {
    const url = new URL(address.trim());
    return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const kMarks: [string, 'strong' | 'emphasis' | 'strike'][] = [
  ['**', 'strong'],
  ['__', 'strong'],
  ['~~', 'strike'],
  ['*', 'emphasis'],
  ['_', 'emphasis'],
];
const kSpecial = /[\\`*_~[<\nh]/g;
const kAutolink = /https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]}]/y;
const kWordBefore = /[\p{L}\p{N}]$/u;
const kWordAfter = /^[\p{L}\p{N}]/u;

export function parseInline(text: string, depth = 0): Inline[] {
  const out: Inline[] = [];
  let plain = '';
  let i = 0;
  // Where a mark was looked for in vain: it is not looked for again, so the work stays linear.
  const missing = new Set<string>();
  const flush = () => {
    if (plain) out.push({ kind: 'text', text: plain });
    plain = '';
  };
  const push = (node: Inline, next: number) => {
    flush();
    out.push(node);
    i = next;
  };
  while (i < text.length) {
    kSpecial.lastIndex = i;
    const found = kSpecial.exec(text);
    if (!found) {
      plain += text.slice(i);
      break;
    }
    plain += text.slice(i, found.index);
    i = found.index;
    const c = text[i];
    if (c === '\\' && i + 1 < text.length && /[!-/:-@[-`{-~]/.test(text[i + 1])) {
      plain += text[i + 1];
      i += 2;
    } else if (c === '\n') {
      if (plain.endsWith('  ')) {
        plain = plain.trimEnd();
        push({ kind: 'break' }, i + 1);
      } else {
        plain += '\n';
        ++i;
      }
    } else if (c === '`') {
      const ticks = /^`+/.exec(text.slice(i, i + 64))![0];
      const end = missing.has(ticks) ? -1 : text.indexOf(ticks, i + ticks.length);
      if (end < 0) {
        missing.add(ticks);
        plain += ticks;
        i += ticks.length;
      } else {
        const code = text.slice(i + ticks.length, end).replaceAll('\n', ' ');
        push({ kind: 'code', text: code.length > 2 && code.startsWith(' ') && code.endsWith(' ') ? code.slice(1, -1) : code }, end + ticks.length);
      }
    } else if (c === '[' || c === '<') {
      const link = depth < kDepthMax ? parseLink(text, i, depth) : null;
      if (link) push(link[0], link[1]);
      else {
        plain += c;
        ++i;
      }
    } else if (c === 'h') {
      kAutolink.lastIndex = i;
      const address = plain === '' || !kWordBefore.test(plain.slice(-2)) ? kAutolink.exec(text)?.[0] : undefined;
      const href = address ? safeHref(address) : null;
      if (address && href) push({ kind: 'link', href, children: [{ kind: 'text', text: address }] }, i + address.length);
      else {
        plain += c;
        ++i;
      }
    } else {
      const marked = depth < kDepthMax ? parseMark(text, i, depth, plain.slice(-2), missing) : null;
      if (marked) push(marked[0], marked[1]);
      else {
        plain += c;
        ++i;
      }
    }
  }
  flush();
  return out;
}

function parseMark(text: string, at: number, depth: number, before: string, missing: Set<string>): [Inline, number] | null {
  for (const [mark, kind] of kMarks) {
    if (!text.startsWith(mark, at) || missing.has(mark)) continue;
    const after = text[at + mark.length];
    if (after === undefined || /\s/.test(after)) continue;
    if (mark[0] === '_' && kWordBefore.test(before)) continue; // snake_case
    let end = text.indexOf(mark, at + mark.length + 1);
    while (end >= 0) {
      const closes = !/\s/.test(text[end - 1]) && !(mark[0] === '_' && kWordAfter.test(text.slice(end + mark.length, end + mark.length + 2)));
      if (closes && !(mark.length === 1 && text[end + 1] === mark && text[end - 1] !== mark)) break;
      end = text.indexOf(mark, end + (mark.length === 1 && text[end + 1] === mark ? 2 : 1));
    }
    if (end < 0) {
      missing.add(mark);
      continue;
    }
    return [{ kind, children: parseInline(text.slice(at + mark.length, end), depth + 1) }, end + mark.length];
  }
  return null;
}

function parseLink(text: string, at: number, depth: number): [Inline, number] | null {
  if (text[at] === '<') {
    const end = at + text.slice(at, at + kLinkMax).indexOf('>');
    const address = end < at ? '' : text.slice(at + 1, end);
    const href = /^(https?|mailto):[^\s<]+$/.test(address) ? safeHref(address) : null;
    return href ? [{ kind: 'link', href, children: [{ kind: 'text', text: address }] }, end + 1] : null;
  }
  const near = text.slice(at, at + kLinkMax);
  const middle = at + near.indexOf('](');
  const end = at + near.indexOf(')', middle - at);
  if (middle < at || end < middle) return null;
  const inner = text.slice(at + 1, middle);
  if (inner.includes('[')) return null;
  const href = safeHref(text.slice(middle + 2, end).split(/\s/)[0]);
  const children = parseInline(inner, depth + 1);
  // A link that leads nowhere it may is still text that the model wrote.
  return href ? [{ kind: 'link', href, children }, end + 1] : null;
}
