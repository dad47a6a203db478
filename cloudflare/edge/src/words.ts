// Words of a text, folded as SQLite's FTS5 does with its unicode61 tokenizer:
// dataset/words.go.
import { FOLDS, MARKS, SEPARATORS } from "./words_table";

export interface Word { text: string; prefix: boolean }

const marks = new Set(MARKS);

// within finds the range, of `width` numbers that begin with lo and hi, that c may be in; -1 if there is none.
function within(table: readonly number[], width: number, c: number): number {
  let lo = 0, hi = table.length / width;
  while (lo < hi) {
    const mid = (lo + hi) >> 1;
    if (table[mid * width + 1]! >= c) hi = mid;
    else lo = mid + 1;
  }
  return lo * width < table.length && c >= table[lo * width]! ? lo * width : -1;
}

// fold gives the letter that c counts as ("" if it is dropped), or undefined if it stands between words.
function fold(c: number, inside: boolean): string | undefined {
  if (within(SEPARATORS, 2, c) >= 0) return undefined;
  if (marks.has(c)) return inside ? "" : undefined;
  const i = within(FOLDS, 4, c);
  return String.fromCodePoint(i >= 0 && (c - FOLDS[i]!) % FOLDS[i + 2]! === 0 ? c + FOLDS[i + 3]! : c);
}

/** words hands each word of a text to f, with whether a star follows at once. */
export function words(text: string, f: (word: string, star: boolean) => void): void {
  let word = "", inside = false;
  for (const ch of text) {
    const c = ch.codePointAt(0)!;
    let letter: string | undefined;
    if (c < 0x80) letter = (c >= 97 && c <= 122) || (c >= 48 && c <= 57) ? ch : c >= 65 && c <= 90 ? ch.toLowerCase() : undefined;
    else letter = fold(c, inside);
    if (letter !== undefined) {
      word += letter;
      inside ||= letter !== "";
    } else if (inside) {
      f(word, ch === "*");
      word = "";
      inside = false;
    }
  }
  if (inside) f(word, false);
}

/** searchWords are the words of a q; doubled ones count once. */
export function searchWords(q: string): Word[] {
  const list: Word[] = [];
  words(q, (text, prefix) => {
    if (!list.some((w) => w.text === text && w.prefix === prefix)) list.push({ text, prefix });
  });
  return list;
}
