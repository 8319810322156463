#pragma once

#include <string>
#include <string_view>

namespace caravan {

/// The Porter stem of a word: what nltk.stem.porter.PorterStemmer().stem(word) gives in its default
/// mode, NLTK_EXTENSIONS (a table of irregular forms, and other rules for -ies, -ied, -y, -alli,
/// -fulli and -logi). rouge-score stems with it words of more than 3 characters.
/// word: lower-case ASCII letters and digits. Time grows with its length only.
/// Source: Porter 1980, "An algorithm for suffix stripping"; NLTK 3.10.4, nltk/stem/porter.py.
std::string porter_stem(std::string_view word);

}  // namespace caravan
