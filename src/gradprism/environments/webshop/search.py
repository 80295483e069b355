"""Full-text search as Lucene does it: English analysis and BM25, with the whole index in numpy arrays.

Score of a document for a query: Σ over the query's words of ln(1 + (N − df + ½) / (df + ½)) · tf / (tf + k1·(1 − b + b·dl / avgdl)),
where dl is the document's length rounded as Lucene stores it (Robertson & Zaragoza 2009; Lucene's BM25Similarity). Equal scores rank
in the order of the documents.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import regex
import snowballstemmer

K1, B = 0.9, 0.4  # Anserini's
STOP_WORDS = frozenset(
    {"a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of", "on", "or"}
    | {"such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with"}
)
MAX_QUERY = 1000  # words; no page shows more, and a longer text is no query
MAX_TOKEN = 255  # characters; longer ones are cut into pieces


def _tokens() -> regex.Pattern[str]:
    """Words by Unicode's rules (UAX 29) as Lucene's StandardTokenizer reads them, Chinese characters singly, and each emoji.

    `size:free` and `don't` are one word, as are digits joined by commas or points; underscores join, but are no word of their own.
    """
    marks = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
    letter, digit = rf"[\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}]{marks}", rf"\p{{WB=Numeric}}{marks}"
    katakana, joint = rf"\p{{WB=Katakana}}{marks}", rf"(?:\p{{WB=ExtendNumLet}}{marks})"
    in_words, in_numbers = (rf"[\p{{WB={kind}}}\p{{WB=MidNumLet}}']{marks}" for kind in ("MidLetter", "MidNum"))
    number, word = rf"{digit}(?:(?:{joint}*|{in_numbers}){digit})*", rf"{letter}(?:(?:{joint}*|{in_words}){letter})*"
    core = rf"(?:{katakana}(?:{joint}*{katakana})*|(?:{number}|{word})+)"
    # What Unicode called pictographic when Lucene's tables were made; later editions dropped stars, notes and hands.
    picture = r"[\p{Extended_Pictographic}\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2763-\u2767]"
    emoji = rf"{picture}\uFE0F?\p{{EMod}}?(?:\u200D{picture}\uFE0F?\p{{EMod}}?)*"
    words = rf"{joint}*{core}(?:{joint}+{core})*{joint}*"
    return regex.compile(rf"{words}|\p{{Han}}{marks}|\p{{Hiragana}}{marks}|\p{{LB=SA}}+|{emoji}", regex.V1)


_TOKEN = _tokens()
_POSSESSIVE = regex.compile(r"['’＇][sS]$")
_SYLLABLE = regex.compile(r"(?:[aeiou]|(?<=[^aeiou])y)(?:[^aeiouy]|(?<=[aeiou])y)")  # a vowel and a consonant after it
_stemmer = snowballstemmer.stemmer("porter")


@functools.lru_cache(maxsize=1 << 18)
def _stem(word: str) -> str:
    """Porter's stem as Lucene has it: two letters or fewer stay, and its author's later rules `logi` → `log` and `bli` → `ble` hold."""
    if len(word) <= 2:
        return word
    stem = _stemmer.stemWord(word)
    if stem.endswith("logi") and _SYLLABLE.search(stem[:-4]):
        return stem[:-1]
    if stem.endswith("bli") and _SYLLABLE.search(stem[:-3]):
        return _stemmer.stemWord(stem[:-1] + "e")
    return stem


def analyse(text: str) -> list[str]:
    """A text's index terms: words in lower case without possessive endings and stop words, stemmed."""
    pieces = (word[i : i + MAX_TOKEN] for word in _TOKEN.findall(text) for i in range(0, len(word), MAX_TOKEN))
    words = (_POSSESSIVE.sub("", piece).lower() for piece in pieces)
    return [_stem(word) for word in words if word and word not in STOP_WORDS]


def stored_length(length: int) -> int:
    """A document's length as Lucene stores it in a byte: exact up to 39, then to three bits behind the first."""
    if length < 24:
        return length
    rest = length - 24
    shift = max(0, rest.bit_length() - 4)
    return 24 + (rest >> shift << shift)


class SearchIndex:
    """Documents, numbered in the order given."""

    def __init__(self, documents: Sequence[str]) -> None:
        postings: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        lengths = []
        for number, document in enumerate(documents):
            terms = analyse(document)
            lengths.append(len(terms))
            for term, count in Counter(terms).items():
                ids, counts = postings[term]
                ids.append(number)
                counts.append(count)
        self._n = n = len(lengths)
        stored = np.array([stored_length(length) for length in lengths], dtype=np.float64)
        norms = K1 * (1 - B + B * stored / (sum(lengths) / n if sum(lengths) else 1.0))
        self._postings: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for term, (ids, counts) in postings.items():
            at, tf = np.array(ids, dtype=np.int32), np.array(counts, dtype=np.float64)
            idf = np.log(1 + (n - len(at) + 0.5) / (len(at) + 0.5))
            self._postings[term] = at, (idf * tf / (tf + norms[at])).astype(np.float32)

    def search(self, query: str, most: int = 50) -> list[int]:
        """Numbers of the best documents that hold any word of the query, best first."""
        scores = np.zeros(self._n, dtype=np.float32)
        for term in analyse(query)[:MAX_QUERY]:
            found = self._postings.get(term)
            if found is not None:
                scores[found[0]] += found[1]
        if not scores.any():
            return []
        floor = np.partition(scores, -most)[-most] if most < self._n else 0.0
        candidates = np.flatnonzero(scores >= max(floor, np.finfo(np.float32).tiny))
        order = np.argsort(-scores[candidates], kind="stable")  # candidates ascend, so ties rank in the documents' order
        return candidates[order][:most].tolist()
