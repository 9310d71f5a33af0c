// The reader of markdown on what models write, on halves of it, and on what somebody might try.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { highlight } from '../../src/chat/highlight';
import { parseInline, parseMarkdown, safeHref, type Block, type Inline } from '../../src/chat/markdown';

const kText = `# Title
Some *emphasis*, **strong**, ~~gone~~, \`code *as is*\` and snake_case_names.

- one
  - nested
- two

3. three
4. four

> quoted
> on

| a | b |
|---|:-:|
| 1 | \`|\` |

\`\`\`cpp
int a[] = {1};  // <b>
\`\`\`
[link](https://example.org/a) <https://example.org> https://example.org/b.
`;

function plain(nodes: Inline[]): string {
  return nodes.map((node) => ('text' in node ? node.text : 'children' in node ? plain(node.children) : '\n')).join('');
}
function all(blocks: Block[]): string {
  return blocks
    .map((block) => {
      if (block.kind === 'paragraph' || block.kind === 'heading') return plain(block.children);
      if (block.kind === 'code') return block.text;
      if (block.kind === 'list') return block.items.map(all).join('\n');
      if (block.kind === 'quote') return all(block.children);
      if (block.kind === 'table') return [block.head, ...block.rows].map((row) => row.map(plain).join('|')).join('\n');
      return '';
    })
    .join('\n');
}
function links(nodes: Inline[]): string[] {
  return nodes.flatMap((node) => (node.kind === 'link' ? [node.href, ...links(node.children)] : 'children' in node ? links(node.children) : []));
}

test('the dialect is read', () => {
  const blocks = parseMarkdown(kText);
  assert.deepEqual(
    blocks.map((block) => block.kind),
    ['heading', 'paragraph', 'list', 'list', 'quote', 'table', 'code', 'paragraph'],
  );
  const [, paragraph, list, ordered, , table, code, last] = blocks;
  assert.ok(paragraph.kind === 'paragraph');
  assert.deepEqual(
    paragraph.children.map((node) => node.kind),
    ['text', 'emphasis', 'text', 'strong', 'text', 'strike', 'text', 'code', 'text'],
  );
  assert.match(plain(paragraph.children), /snake_case_names/);
  assert.ok(list.kind === 'list' && list.items.length === 2 && list.items[0][1].kind === 'list');
  assert.ok(ordered.kind === 'list' && ordered.is_ordered && ordered.start === 3);
  assert.ok(table.kind === 'table' && plain(table.rows[0][1]) === '|' && table.align[1] === 'center');
  assert.ok(code.kind === 'code' && code.language === 'cpp' && code.text === 'int a[] = {1};  // <b>' && !code.is_open);
  assert.ok(last.kind === 'paragraph');
  assert.deepEqual(links(last.children), ['https://example.org/a', 'https://example.org/', 'https://example.org/b']);
});

test('any beginning of an answer is read, and loses no letter', () => {
  const letters = (text: string) => text.replaceAll(/[^a-z]/g, '');
  for (let end = 0; end <= kText.length; ++end) {
    const seen = letters(all(parseMarkdown(kText.slice(0, end))));
    // Fences' languages, addresses of links and rows that are becoming a rule are no text of their own.
    for (const word of ['title', 'emphasis', 'strong', 'nested', 'quoted', 'four']) {
      if (letters(kText.slice(0, end)).includes(word)) assert.ok(seen.includes(word), `${word} is gone at ${end}`);
    }
  }
});

test('links lead to http, https and mail and nowhere else', () => {
  for (const bad of ['javascript:alert(1)', 'JaVaScRiPt:alert(1)', ' javascript:alert(1)', 'data:text/html,x', 'vbscript:x', 'file:///etc/passwd', 'blob:x', '//evil', '/v1/models', 'java\nscript:alert(1)', '\u0001javascript:alert(1)']) {
    assert.equal(safeHref(bad), null, bad);
    assert.deepEqual(links(parseInline(`[x](${bad})`)).filter((href) => !/^(https?|mailto):/.test(href)), [], bad);
  }
  assert.equal(safeHref('https://example.org'), 'https://example.org/');
});

test('hostile text costs time in proportion to its length', () => {
  const kinds = ['*', '_', '**a', '`', '[', '[a](', '![', '<', '> ', '- ', '~', '~~a ', '|', '\\', 'h', 'https://', '#', '* a *', '[[a](b)', '`` ` ', '_a_', '1. ', '    - ', '|-|\n', '```\n'];
  for (const kind of kinds) {
    const text = kind.repeat(40_000 / kind.length);
    const begun = process.cpuUsage().user;
    parseMarkdown(text);
    const took_s = (process.cpuUsage().user - begun) / 1e6;
    // Quadratic work over 40,000 characters takes minutes; 20 seconds of its own time allow for any machine.
    assert.ok(took_s < 20, `${JSON.stringify(kind)} took ${took_s} s`);
  }
  parseMarkdown('> '.repeat(5000) + 'deep');
  parseMarkdown('**'.repeat(3000) + 'x' + '**'.repeat(3000));
});

test('highlighting loses no character of the code', () => {
  for (const code of ['', kText, 'for (int i = 0; i < 3; ++i) { s += "a\\"b"; } // c', "x = 'it' # no\n", '/* open', '"open', '`${a}`'.repeat(50)]) {
    for (const language of ['cpp', 'python', '', 'text', 'sql']) {
      assert.equal(
        highlight(code, language)
          .map((piece) => piece.text)
          .join(''),
        code,
      );
    }
  }
});
