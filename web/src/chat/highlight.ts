// Enough colour for code to be read: comments, strings, numbers and words that most languages keep
// for themselves. One rule set for all of them; where it errs, a word has the wrong colour.

export interface Piece {
  text: string;
  kind: '' | 'comment' | 'string' | 'number' | 'keyword' | 'call';
}

const kKeywords = new Set(
  (
    'abstract alignas and as asm assert async auto await bool break case catch char class co_await co_return co_yield concept const constexpr continue ' +
    'crate def default defer del delete do double dyn elif else enum except explicit export extends extern false False final finally float fn for from func ' +
    'function global go goto if impl implements import in include inline instanceof int interface is lambda let long loop match mod module move mut mutable ' +
    'namespace new nil noexcept None nonlocal not null nullptr operator or override package pass private protected pub public raise ref register requires return ' +
    'self short signed sizeof static struct super switch template then this throw trait true True try type typedef typename union unsigned unsafe use using ' +
    'var virtual void volatile where while with yield fi done esac echo local select insert update create table'
  ).split(' '),
);
const kHash = new Set(['', 'py', 'python', 'sh', 'bash', 'shell', 'zsh', 'toml', 'yaml', 'yml', 'rb', 'ruby', 'r', 'perl', 'make', 'makefile', 'cmake', 'dockerfile', 'ini', 'conf']);
const kPlain = new Set(['text', 'txt', 'plain', 'plaintext', 'output', 'console', 'log', 'diff', 'md', 'markdown']);
const kCharsMax = 60_000; // longer code is shown in one colour

export function highlight(code: string, language: string): Piece[] {
  const name = language.toLowerCase();
  if (code.length > kCharsMax || kPlain.has(name)) return [{ text: code, kind: '' }];
  const comment = kHash.has(name) ? '#[^\\n]*|//[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)' : name === 'sql' || name === 'lua' || name === 'haskell' ? '--[^\\n]*' : '//[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)|<!--[\\s\\S]*?(?:-->|$)';
  const rules = new RegExp(
    `(${comment})|("""[\\s\\S]*?(?:"""|$)|"(?:\\\\.|[^"\\\\\\n])*"?|'(?:\\\\.|[^'\\\\\\n])*'|\`(?:\\\\.|[^\`\\\\])*\`?)|\\b(0[xX][0-9a-fA-F_']+|\\d[\\d_']*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)\\b|([A-Za-z_]\\w*)(?=(\\s*\\()?)`,
    'g',
  );
  const pieces: Piece[] = [];
  let at = 0;
  for (const match of code.matchAll(rules)) {
    const kind = match[1] !== undefined ? 'comment' : match[2] !== undefined ? 'string' : match[3] !== undefined ? 'number' : kKeywords.has(match[4]) ? 'keyword' : match[5] !== undefined ? 'call' : '';
    if (kind === '' || match[0] === '') continue;
    if (match.index > at) pieces.push({ text: code.slice(at, match.index), kind: '' });
    pieces.push({ text: match[0], kind });
    at = match.index + match[0].length;
  }
  if (at < code.length) pieces.push({ text: code.slice(at), kind: '' });
  return pieces;
}
