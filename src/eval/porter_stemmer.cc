#include "eval/porter_stemmer.h"

#include <array>
#include <span>
#include <utility>

namespace caravan {

namespace {

constexpr bool is_aeiou(char c) { return c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u'; }

/// A y is a consonant where the letter before it is not one, or where the word begins.
bool next_is_consonant(char c, bool is_first, bool before_is_consonant) {
  if (c == 'y') return is_first || !before_is_consonant;
  return !is_aeiou(c);
}

/// Whether word[i] is a consonant. Digits are.
bool is_consonant(std::string_view word, size_t i) {
  size_t first_y = i + 1;  // of the run of y that ends at i
  while (first_y > 0 && word[first_y - 1] == 'y') --first_y;
  bool is = first_y > 0 && !is_aeiou(word[first_y - 1]);
  for (size_t k = first_y; k <= i; ++k) is = k == 0 || !is;
  return is;
}

/// m: how often a vowel is followed by a consonant.
int measure(std::string_view stem) {
  int m = 0;
  bool is_before = true;
  for (size_t i = 0; i < stem.size(); ++i) {
    const bool is = next_is_consonant(stem[i], i == 0, is_before);
    if (i > 0 && is && !is_before) ++m;
    is_before = is;
  }
  return m;
}

bool contains_vowel(std::string_view stem) {
  bool is_before = true;
  for (size_t i = 0; i < stem.size(); ++i) {
    is_before = next_is_consonant(stem[i], i == 0, is_before);
    if (!is_before) return true;
  }
  return false;
}

bool ends_double_consonant(std::string_view word) {
  const size_t n = word.size();
  return n >= 2 && word[n - 1] == word[n - 2] && is_consonant(word, n - 1);
}

/// *o: consonant, vowel, consonant other than w, x, y; or a word of vowel and consonant.
bool ends_cvc(std::string_view word) {
  const size_t n = word.size();
  if (n == 2) return !is_consonant(word, 0) && is_consonant(word, 1);
  return n >= 3 && is_consonant(word, n - 3) && !is_consonant(word, n - 2) &&
         is_consonant(word, n - 1) && word[n - 1] != 'w' && word[n - 1] != 'x' &&
         word[n - 1] != 'y';
}

struct Rule {
  std::string_view suffix;
  std::string_view replacement;
};

std::string replaced(std::string_view word, size_t num_dropped, std::string_view replacement) {
  std::string out(word.substr(0, word.size() - num_dropped));
  out += replacement;
  return out;
}

/// The first rule whose suffix the word has decides, also when its stem's measure is too small.
std::string apply_first(std::span<const Rule> rules, std::string_view word, int min_measure) {
  for (const Rule& rule : rules) {
    if (!word.ends_with(rule.suffix)) continue;
    const std::string_view stem = word.substr(0, word.size() - rule.suffix.size());
    if (measure(stem) < min_measure) break;
    return replaced(word, rule.suffix.size(), rule.replacement);
  }
  return std::string(word);
}

/// Plurals.
std::string step_1a(std::string_view word) {
  if (word.ends_with("ies")) return replaced(word, 3, word.size() == 4 ? "ie" : "i");
  if (word.ends_with("sses")) return replaced(word, 2, "");
  if (word.ends_with("ss") || !word.ends_with("s")) return std::string(word);
  return replaced(word, 1, "");
}

/// -ed and -ing.
std::string step_1b(std::string_view word) {
  if (word.ends_with("ied")) return replaced(word, 3, word.size() == 4 ? "ie" : "i");
  if (word.ends_with("eed"))
    return replaced(word, measure(word.substr(0, word.size() - 3)) > 0, "");
  std::string_view stem;
  for (const std::string_view suffix : {"ed", "ing"}) {
    if (!word.ends_with(suffix)) continue;
    stem = word.substr(0, word.size() - suffix.size());
    if (contains_vowel(stem)) break;
    stem = {};
  }
  if (stem.empty()) return std::string(word);
  if (stem.ends_with("at") || stem.ends_with("bl") || stem.ends_with("iz")) {
    return replaced(stem, 0, "e");
  }
  const char last = stem.back();
  if (ends_double_consonant(stem)) {
    return replaced(stem, last != 'l' && last != 's' && last != 'z', "");
  }
  return replaced(stem, 0, measure(stem) == 1 && ends_cvc(stem) ? "e" : "");
}

/// -y after a consonant that is not the word's first letter.
std::string step_1c(std::string_view word) {
  const bool applies =
      word.ends_with("y") && word.size() > 2 && is_consonant(word, word.size() - 2);
  return applies ? replaced(word, 1, "i") : std::string(word);
}

/// Double suffixes.
std::string step_2(std::string_view word) {
  static constexpr std::array<Rule, 21> kRules{
      {{"ational", "ate"}, {"tional", "tion"}, {"enci", "ence"},   {"anci", "ance"},
       {"izer", "ize"},    {"bli", "ble"},     {"alli", "al"},     {"entli", "ent"},
       {"eli", "e"},       {"ousli", "ous"},   {"ization", "ize"}, {"ation", "ate"},
       {"ator", "ate"},    {"alism", "al"},    {"iveness", "ive"}, {"fulness", "ful"},
       {"ousness", "ous"}, {"aliti", "al"},    {"iviti", "ive"},   {"biliti", "ble"},
       {"fulli", "ful"}}};
  if (word.ends_with("alli") && measure(word.substr(0, word.size() - 4)) > 0) {
    return step_2(replaced(word, 4, "al"));  // once: no rule makes -alli
  }
  if (word.ends_with("logi")) {  // the l counts as part of the stem
    return replaced(word, measure(word.substr(0, word.size() - 3)) > 0, "");
  }
  return apply_first(kRules, word, 1);
}

std::string step_3(std::string_view word) {
  static constexpr std::array<Rule, 7> kRules{{{"icate", "ic"},
                                               {"ative", ""},
                                               {"alize", "al"},
                                               {"iciti", "ic"},
                                               {"ical", "ic"},
                                               {"ful", ""},
                                               {"ness", ""}}};
  return apply_first(kRules, word, 1);
}

std::string step_4(std::string_view word) {
  static constexpr std::array<Rule, 18> kRules{{{"al", ""},
                                                {"ance", ""},
                                                {"ence", ""},
                                                {"er", ""},
                                                {"ic", ""},
                                                {"able", ""},
                                                {"ible", ""},
                                                {"ant", ""},
                                                {"ement", ""},
                                                {"ment", ""},
                                                {"ent", ""},
                                                {"ou", ""},
                                                {"ism", ""},
                                                {"ate", ""},
                                                {"iti", ""},
                                                {"ous", ""},
                                                {"ive", ""},
                                                {"ize", ""}}};
  if (!word.ends_with("ion")) return apply_first(kRules, word, 2);
  const std::string_view stem = word.substr(0, word.size() - 3);
  const bool applies = measure(stem) > 1 && (stem.back() == 's' || stem.back() == 't');
  return replaced(word, applies ? 3 : 0, "");
}

/// A last -e.
std::string step_5a(std::string_view word) {
  if (!word.ends_with("e")) return std::string(word);
  const std::string_view stem = word.substr(0, word.size() - 1);
  const int m = measure(stem);
  return replaced(word, m > 1 || (m == 1 && !ends_cvc(stem)), "");
}

/// A last -ll.
std::string step_5b(std::string_view word) {
  const bool applies = word.ends_with("ll") && measure(word.substr(0, word.size() - 1)) > 1;
  return replaced(word, applies, "");
}

constexpr std::array<std::pair<std::string_view, std::string_view>, 16> kIrregular{{
    {"sky", "sky"},
    {"skies", "sky"},
    {"dying", "die"},
    {"lying", "lie"},
    {"tying", "tie"},
    {"news", "news"},
    {"innings", "inning"},
    {"inning", "inning"},
    {"outings", "outing"},
    {"outing", "outing"},
    {"cannings", "canning"},
    {"canning", "canning"},
    {"howe", "howe"},
    {"proceed", "proceed"},
    {"exceed", "exceed"},
    {"succeed", "succeed"},
}};

}  // namespace

std::string porter_stem(std::string_view word) {
  for (const auto& [form, stem] : kIrregular) {
    if (word == form) return std::string(stem);
  }
  if (word.size() <= 2) return std::string(word);
  return step_5b(step_5a(step_4(step_3(step_2(step_1c(step_1b(step_1a(word))))))));
}

}  // namespace caravan
