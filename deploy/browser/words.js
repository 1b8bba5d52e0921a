// WordPiece tokenization with the places of tokens in the text, windows over long passages, and the best answer in one.
//
// cluster/models/span_decoding.py does the same in Python: both give the same answer.

const CUTS_ALONE =
  "[!-\\/:-@\\[-`{-~]|\\p{P}|[\\u3400-\\u4DBF\\u4E00-\\u9FFF\\uF900-\\uFAFF\\u{20000}-\\u{2CEAF}\\u{2F800}-\\u{2FA1F}]";
// BERT splits at white space and around punctuation marks and CJK characters, nowhere else, and drops control characters.
const SPACE = "\\t\\n\\r\\p{Z}";
const WORD = new RegExp(`${CUTS_ALONE}|(?:(?!${CUTS_ALONE})[^${SPACE}])+`, "gu");
const CONTROL = /[\p{Cc}\p{Cf}\p{Co}]/gu;
const ASCII = /^[!-~]*$/;

// What the page cannot answer, in words for a person.
export class Refusal extends Error {}

// Tokens of a text: { ids, places }, where places[i] = [start, end] are the characters of token i.
export function piecesOf(tokenizer, text) {
  const ids = [];
  const places = [];
  for (const match of text.matchAll(WORD)) {
    const { word, letters } = normalized(tokenizer, match[0], match.index);
    if (word === "") continue;
    const found = tokenizer.encode(word, { add_special_tokens: false });
    ids.push(...found.ids);
    places.push(...placesOf(found.tokens, letters));
  }
  return { ids, places };
}

// A word as the tokenizer sees it, without accents and in lower case, and the place in the text of each of its letters.
// Letter by letter: JavaScript has another lower case for a sigma at the end of a word.
function normalized(tokenizer, word, start) {
  if (ASCII.test(word)) return { word, letters: [...word].map((_, index) => [start + index, start + index + 1]) };
  const letters = [];
  let made = "";
  let begin = start;
  for (const letter of word) {
    const plain = letter.replace(CONTROL, "");
    const next = plain === "" || tokenizer.normalizer === null ? plain : tokenizer.normalizer(plain).trim();
    for (const _ of next) letters.push([begin, begin + letter.length]);
    made += next;
    begin += letter.length;
  }
  return { word: made, letters };
}

function placesOf(tokens, letters) {
  const whole = [letters.at(0)?.[0] ?? 0, letters.at(-1)?.[1] ?? 0];
  const lengths = tokens.map((token, index) => [...token].length - (index > 0 && token.startsWith("##") ? 2 : 0));
  // One unknown token stands for the whole word.
  if (lengths.reduce((sum, length) => sum + length, 0) !== letters.length) return tokens.map(() => whole);
  let next = 0;
  return lengths.map((length) => {
    const place = [letters[next][0], letters[next + length - 1][1]];
    next += length;
    return place;
  });
}

const OVERLAP = 128; // most tokens that two neighbors share
const MOST_TOKENS = 4096; // of a passage: a phone takes seconds for these

// Inputs of the model for question and passage: { windows, tokens, read }, where `read` of the passage's `tokens` are in
// windows of at most `limit` tokens that overlap. Each window is { ids, types, first, places }: `first` is the index of
// the first token of the passage.
export function windowsOf(tokenizer, marks, question, passage, limit, longestQuestion = Infinity) {
  const asked = piecesOf(tokenizer, checked(question, "question")).ids.slice(0, longestQuestion);
  if (asked.length === 0) throw new Refusal("The question has no words: write some.");
  const all = piecesOf(tokenizer, checked(passage, "passage"));
  if (all.ids.length === 0) throw new Refusal("The passage has no words: write some, or choose a text.");
  const room = limit - asked.length - 3;
  if (room < 1) throw new Refusal(`The question fills all ${limit} tokens that the model reads: shorten it.`);
  const read = Math.min(all.ids.length, MOST_TOKENS);
  const [passageIds, places] = [all.ids.slice(0, read), all.places.slice(0, read)];
  const overlap = Math.min(OVERLAP, Math.floor(room / 3));
  const first = asked.length + 2;
  const windows = [];
  for (let start = 0; start === 0 || start + overlap < read; start += room - overlap) {
    const part = passageIds.slice(start, start + room);
    const ids = [marks.cls, ...asked, marks.sep, ...part, marks.sep];
    const types = ids.map((_, place) => (place < first ? 0 : 1));
    windows.push({ ids, types, first, places: places.slice(start, start + room) });
  }
  return { windows, tokens: all.ids.length, read };
}

function checked(text, name) {
  if (text.includes("\0")) throw new Refusal(`The ${name} has a NUL character, so it is no plain text.`);
  return text;
}

const LONGEST_ANSWER = 30;
const BEST_OF = 20;

// The best answer in a window: { score, start, end } in characters of the passage; null without one.
export function bestSpan({ first, places }, startLogits, endLogits) {
  const likeliest = (logits) =>
    [...places.keys()].sort((a, b) => logits[first + b] - logits[first + a] || a - b).slice(0, BEST_OF);
  let best = null;
  const lasts = likeliest(endLogits);
  for (const from of likeliest(startLogits)) {
    for (const to of lasts.filter((token) => token >= from && token < from + LONGEST_ANSWER)) {
      const score = Math.fround(startLogits[first + from] + endLogits[first + to]);
      best = better(best, { score, start: places[from][0], end: places[to][1] });
    }
  }
  return best;
}

// The better of two answers, either of which may be null; of equals the first in the passage.
export function better(one, other) {
  if (one === null || other === null) return one ?? other;
  return (other.score - one.score || one.start - other.start || one.end - other.end) > 0 ? other : one;
}

// The score of no answer in a window: both logits of [CLS].
export function nullScore(startLogits, endLogits) {
  return Math.fround(startLogits[0] + endLogits[0]);
}
