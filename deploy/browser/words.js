// WordPiece tokenization with the places of tokens in the text, and windows over long passages.

const CUTS_ALONE =
  "[!-\\/:-@\\[-`{-~]|\\p{P}|[\\u3400-\\u4DBF\\u4E00-\\u9FFF\\uF900-\\uFAFF\\u{20000}-\\u{2CEAF}\\u{2F800}-\\u{2FA1F}]";
// BERT splits at white space and around punctuation marks and CJK characters, nowhere else.
const WORD = new RegExp(`${CUTS_ALONE}|(?:(?!${CUTS_ALONE})\\S)+`, "gu");

// Tokens of a text: { ids, places }, where places[i] = [start, end] are the characters of the word of token i.
export function piecesOf(tokenizer, text) {
  const ids = [];
  const places = [];
  for (const match of text.matchAll(WORD)) {
    const place = [match.index, match.index + match[0].length];
    for (const id of tokenizer.encode(match[0], { add_special_tokens: false }).ids) {
      ids.push(id);
      places.push(place);
    }
  }
  return { ids, places };
}

// Inputs of the model for question and passage: one window of at most `limit` tokens, or several that overlap.
// Each is { ids, types, first, places }: `first` is the index of the first token of the passage.
export function windowsOf(tokenizer, marks, question, passage, limit) {
  const asked = piecesOf(tokenizer, question).ids.slice(0, Math.floor(limit / 3));
  const read = piecesOf(tokenizer, passage);
  const room = limit - asked.length - 3;
  const stride = Math.max(1, Math.floor(room / 3));
  const windows = [];
  for (let start = 0; start === 0 || start + stride < read.ids.length; start += room - stride) {
    const part = read.ids.slice(start, start + room);
    const ids = [marks.cls, ...asked, marks.sep, ...part, marks.sep];
    const first = asked.length + 2;
    const types = ids.map((_, place) => (place < first ? 0 : 1));
    windows.push({ ids, types, first, places: read.places.slice(start, start + room) });
  }
  return windows;
}

const LONGEST_ANSWER = 30;

// The best answer in a window: { score, start, end } in characters of the passage; null without a passage.
export function bestSpan(window, startLogits, endLogits) {
  let best = null;
  const count = window.places.length;
  for (let from = 0; from < count; from += 1) {
    const last = Math.min(count, from + LONGEST_ANSWER);
    for (let to = from; to < last; to += 1) {
      const score = startLogits[window.first + from] + endLogits[window.first + to];
      if (best === null || score > best.score) {
        best = { score, start: window.places[from][0], end: window.places[to][1] };
      }
    }
  }
  return best;
}
