#include "format/model_config.h"

#include "tests/malformed/builders.h"
#include "tests/malformed/cases.h"

namespace caravan::test {

namespace {

constexpr auto kCorrupt = ErrorCode::kCorrupt;
constexpr auto kUnsupported = ErrorCode::kUnsupported;

void read_config(const std::string& input) { parse_model_config(input, "FILE"); }

constexpr const char* kConfig =
    R"({"model_type":"gpt2","architectures":["GPT2LMHeadModel"],"vocab_size":50,"n_embd":8,)"
    R"("n_layer":1,"n_head":2,"n_positions":16,"n_inner":32,"n_ctx":16,)"
    R"("activation_function":"gelu_new","layer_norm_epsilon":1e-05,"torch_dtype":"float32",)"
    R"("scale_attn_weights":true,"scale_attn_by_inverse_layer_idx":false,)"
    R"("reorder_and_upcast_attn":false,"tie_word_embeddings":true,"add_cross_attention":false,)"
    R"("is_encoder_decoder":false,"eos_token_id":1,"bos_token_id":2,"pad_token_id":3})";

std::string with(std::string_view from, std::string_view to) { return replaced(kConfig, from, to); }
// The base with one more field.
std::string plus(std::string_view field) { return with("}", "," + std::string(field) + "}"); }

struct Value {
  const char* name;
  const char* json;
  const char* shown;  // in the message
};

struct Size {
  const char* field;
  const char* pair;  // as it stands in kConfig
  const char* high;
};

// Every size with every wrong kind of value.
std::vector<MalformedCase> size_cases() {
  constexpr Size kSizes[] = {{"vocab_size", "\"vocab_size\":50", "16777216"},
                             {"n_embd", "\"n_embd\":8", "131072"},
                             {"n_layer", "\"n_layer\":1", "4096"},
                             {"n_head", "\"n_head\":2", "131072"},
                             {"n_positions", "\"n_positions\":16", "4194304"},
                             {"n_inner", "\"n_inner\":32", "1048576"},
                             {"n_ctx", "\"n_ctx\":16", "4194304"}};
  constexpr Value kValues[] = {{"zero", "0", "0"},
                               {"negative", "-8", "-8"},
                               {"huge", "9223372036854775807", "9223372036854775807"},
                               {"over_int64", "9223372036854775808", "9223372036854775808"},
                               {"over_uint64", "36893488147419103232", "3.6893488147419103e+19"},
                               {"fraction", "8.5", "8.5"},
                               {"float", "8.0", "8.0"},
                               {"text", "\"8\"", "\"8\""},
                               {"true", "true", "true"},
                               {"array", "[8]", "[8]"},
                               {"object", "{\"a\":8}", "an object"}};
  std::vector<MalformedCase> cases;
  for (const Size& size : kSizes) {
    for (const Value& value : kValues) {
      cases.push_back({fmt::format("config_{}_{}", size.field, value.name), kCorrupt,
                       fmt::format("FILE: {}: got {}, expected an integer from 1 to {}", size.field,
                                   value.shown, size.high),
                       with(size.pair, fmt::format("\"{}\":{}", size.field, value.json)),
                       read_config});
    }
  }
  return cases;
}

std::vector<MalformedCase> boolean_cases() {
  constexpr const char* kPairs[][2] = {
      {"scale_attn_weights", "\"scale_attn_weights\":true"},
      {"scale_attn_by_inverse_layer_idx", "\"scale_attn_by_inverse_layer_idx\":false"},
      {"reorder_and_upcast_attn", "\"reorder_and_upcast_attn\":false"},
      {"tie_word_embeddings", "\"tie_word_embeddings\":true"},
      {"add_cross_attention", "\"add_cross_attention\":false"},
      {"is_encoder_decoder", "\"is_encoder_decoder\":false"}};
  constexpr Value kValues[] = {{"one", "1", "1"},
                               {"text", "\"true\"", "\"true\""},
                               {"null", "null", "null"},
                               {"array", "[]", "[]"}};
  std::vector<MalformedCase> cases;
  for (const auto& [field, pair] : kPairs) {
    for (const Value& value : kValues) {
      cases.push_back({fmt::format("config_{}_{}", field, value.name), kCorrupt,
                       fmt::format("FILE: {}: got {}, expected true or false", field, value.shown),
                       with(pair, fmt::format("\"{}\":{}", field, value.json)), read_config});
    }
  }
  return cases;
}

std::vector<MalformedCase> token_id_cases() {
  constexpr Value kValues[] = {{"fraction", "1.5", "1.5"},
                               {"text", "\"1\"", "\"1\""},
                               {"true", "true", "true"},
                               {"over_int32", "2147483648", "2147483648"},
                               {"object", "{\"a\":1}", "an object"},
                               {"list_of_text", "[\"1\"]", "[\"1\"]"},
                               {"nested_list", "[[1]]", "an array"}};
  constexpr const char* kFields[][3] = {
      {"eos_token_id", "\"eos_token_id\":1", "a token id, a list of token ids or null"},
      {"bos_token_id", "\"bos_token_id\":2", "a token id or null"},
      {"pad_token_id", "\"pad_token_id\":3", "a token id or null"}};
  std::vector<MalformedCase> cases;
  for (const auto& [field, pair, expected] : kFields) {
    for (const Value& value : kValues) {
      cases.push_back({fmt::format("config_{}_{}", field, value.name), kCorrupt,
                       fmt::format("FILE: {}: got {}, expected {}", field, value.shown, expected),
                       with(pair, fmt::format("\"{}\":{}", field, value.json)), read_config});
    }
  }
  return cases;
}

std::vector<MalformedCase> other_cases() {
  const auto read = read_config;
  const std::string valid = kConfig;
  return {
      {"config_empty", kCorrupt, "FILE: offset 0: not valid JSON: incomplete JSON", "", read},
      {"config_cut", kCorrupt, "FILE: offset 462: not valid JSON: incomplete JSON",
       valid.substr(0, valid.size() - 1), read},
      {"config_is_an_array", kCorrupt, "FILE: got [], expected a JSON object", "[]", read},
      {"config_is_null", kCorrupt, "FILE: got null, expected a JSON object", "null", read},
      {"config_is_text", kCorrupt, "FILE: got \"gpt2\", expected a JSON object", "\"gpt2\"", read},
      {"config_is_an_empty_object", kUnsupported,
       "FILE: neither model_type nor architectures, and no n_embd, n_layer and n_head: if this "
       "is a GPT-2, add \"model_type\": \"gpt2\"",
       "{}", read},
      {"config_is_html", kCorrupt, "FILE: offset 0: not valid JSON: syntax error",
       "<!doctype html>", read},
      {"config_in_utf16", kCorrupt, "FILE: UTF-16 text, expected UTF-8: convert it",
       std::string("\xff\xfe{\0}\0", 6), read},
      {"config_with_nan", kCorrupt, "FILE: offset 202: not valid JSON: syntax error",
       with("1e-05", "NaN"), read},
      {"config_with_infinity", kCorrupt, "FILE: offset 202: not valid JSON: syntax error",
       with("1e-05", "Infinity"), read},
      {"config_with_hex", kCorrupt, "FILE: offset 83: not valid JSON: syntax error",
       with("\"n_embd\":8", "\"n_embd\":0x8"), read},
      {"config_with_leading_zero", kCorrupt, "FILE: offset 83: not valid JSON: syntax error",
       with("\"n_embd\":8", "\"n_embd\":08"), read},
      {"config_with_plus", kCorrupt, "FILE: offset 82: not valid JSON: syntax error",
       with("\"n_embd\":8", "\"n_embd\":+8"), read},
      {"config_with_zero_byte", kCorrupt, "FILE: offset 83: not valid JSON: syntax error",
       with("\"n_embd\":8", std::string("\"n_embd\":8\0", 11)), read},
      {"config_twice", kCorrupt, "FILE: offset 463: text after the end of the JSON value",
       valid + valid, read},
      {"config_field_twice", kCorrupt,
       "FILE: offset 470: the key \"n_embd\" appears twice in one object", plus("\"n_embd\":16"),
       read},
      {"config_nests_too_deep", kCorrupt, "FILE: offset 517: not valid JSON: too deep",
       plus("\"task_specific_params\":" + std::string(40, '[') + std::string(40, ']')), read},
      {"config_model_type_missing", kUnsupported,
       "FILE: neither model_type nor architectures, and no n_embd, n_layer and n_head: if this "
       "is a GPT-2, add \"model_type\": \"gpt2\"",
       "{\"n_embd\":8,\"n_layer\":2}", read},
      {"config_model_type_null", kUnsupported,
       "FILE: neither model_type nor architectures, and no n_embd, n_layer and n_head: if this "
       "is a GPT-2, add \"model_type\": \"gpt2\"",
       "{\"model_type\":null}", read},
      {"config_model_type_number", kCorrupt, "FILE: model_type: got 2, expected a string",
       with("\"gpt2\"", "2"), read},
      {"config_model_type_llama", kUnsupported,
       "FILE: model_type: got \"llama\", expected \"gpt2\"", with("\"gpt2\"", "\"llama\""), read},
      {"config_model_type_gpt_neo", kUnsupported,
       "FILE: model_type: got \"gpt_neo\", expected \"gpt2\"", with("\"gpt2\"", "\"gpt_neo\""),
       read},
      {"config_model_type_upper_case", kUnsupported,
       "FILE: model_type: got \"GPT2\", expected \"gpt2\"", with("\"gpt2\"", "\"GPT2\""), read},
      {"config_model_type_empty", kUnsupported, "FILE: model_type: got \"\", expected \"gpt2\"",
       with("\"gpt2\"", "\"\""), read},
      {"config_architecture_llama", kUnsupported,
       "FILE: architectures: got 1 names, the first \"LlamaForCausalLM\", expected GPT2LMHeadModel "
       "or another GPT-2 of transformers",
       with("GPT2LMHeadModel", "LlamaForCausalLM"), read},
      {"config_architectures_two_unknown", kUnsupported,
       "FILE: architectures: got 2 names, the first \"A\", expected GPT2LMHeadModel or another "
       "GPT-2 of transformers",
       with("[\"GPT2LMHeadModel\"]", "[\"A\",\"B\"]"), read},
      {"config_architectures_known_and_number", kCorrupt,
       "FILE: architectures: got [\"GPT2LMHeadModel\",2], expected an array of strings",
       with("[\"GPT2LMHeadModel\"]", "[\"GPT2LMHeadModel\",2]"), read},
      {"config_architectures_text", kCorrupt,
       "FILE: architectures: got \"GPT2LMHeadModel\", expected an array of strings",
       with("[\"GPT2LMHeadModel\"]", "\"GPT2LMHeadModel\""), read},
      {"config_architectures_number", kCorrupt,
       "FILE: architectures: got [2], expected an array of strings",
       with("[\"GPT2LMHeadModel\"]", "[2]"), read},
      {"config_cross_attention", kUnsupported,
       "FILE: add_cross_attention: got true, expected false: only decoders are supported",
       with("\"add_cross_attention\":false", "\"add_cross_attention\":true"), read},
      {"config_encoder_decoder", kUnsupported,
       "FILE: is_encoder_decoder: got true, expected false: only decoders are supported",
       with("\"is_encoder_decoder\":false", "\"is_encoder_decoder\":true"), read},
      {"config_unknown_number", kUnsupported,
       "FILE: unknown field \"rotary_dim\" with value 64: it may change the result; remove it if "
       "it does not",
       plus("\"rotary_dim\":64"), read},
      {"config_unknown_true", kUnsupported,
       "FILE: unknown field \"alibi\" with value true: it may change the result; remove it if it "
       "does not",
       plus("\"alibi\":true"), read},
      {"config_unknown_zero", kUnsupported,
       "FILE: unknown field \"window\" with value 0: it may change the result; remove it if it "
       "does not",
       plus("\"window\":0"), read},
      {"config_unknown_text", kUnsupported,
       "FILE: unknown field \"position_embedding_type\" with value \"rotary\": it may change the "
       "result; remove it if it does not",
       plus("\"position_embedding_type\":\"rotary\""), read},
      {"config_unknown_empty_text", kUnsupported,
       "FILE: unknown field \"norm\" with value \"\": it may change the result; remove it if it "
       "does not",
       plus("\"norm\":\"\""), read},
      {"config_unknown_object", kUnsupported,
       "FILE: unknown field \"quantization_config\" with value an object: it may change the "
       "result; remove it if it does not",
       plus("\"quantization_config\":{\"bits\":4}"), read},
      {"config_auto_map", kUnsupported,
       "FILE: unknown field \"auto_map\" with value an object: it may change the result; remove it "
       "if it does not",
       plus("\"auto_map\":{\"AutoModel\":\"m.M\"}"), read},
      {"config_pruned_heads", kUnsupported,
       "FILE: unknown field \"pruned_heads\" with value an object: it may change the result; "
       "remove it if it does not",
       plus("\"pruned_heads\":{\"0\":[1]}"), read},
      {"config_unknown_name_with_escapes", kUnsupported,
       "FILE: unknown field \"\\x1b[2J\\x0a\" with value 1: it may change the result; remove it if "
       "it does not",
       plus("\"\\u001b[2J\\n\":1"), read},
      {"config_unknown_name_very_long", kUnsupported,
       "FILE: unknown field "
       "\"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff...\" with value 1: it "
       "may change the result; remove it if it does not",
       plus("\"" + std::string(300, 'f') + "\":1"), read},
      {"config_unknown_value_very_long", kUnsupported,
       "FILE: unknown field \"x\" with value "
       "\"vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv...\": it may change the "
       "result; remove it if it does not",
       plus("\"x\":\"" + std::string(300, 'v') + "\""), read},
      {"config_heads_do_not_divide", kCorrupt,
       "FILE: n_embd: got 8, expected a multiple of n_head, 3",
       with("\"n_head\":2", "\"n_head\":3"), read},
      {"config_more_heads_than_channels", kCorrupt,
       "FILE: n_embd: got 8, expected a multiple of n_head, 16",
       with("\"n_head\":2", "\"n_head\":16"), read},
      {"config_alias_differs", kCorrupt,
       "FILE: hidden_size: got 16, expected 8, the value of n_embd", plus("\"hidden_size\":16"),
       read},
      {"config_layers_alias_differs", kCorrupt,
       "FILE: num_hidden_layers: got 2, expected 1, the value of n_layer",
       plus("\"num_hidden_layers\":2"), read},
      {"config_heads_alias_is_text", kCorrupt,
       "FILE: num_attention_heads: got \"2\", expected an integer from 1 to 131072",
       plus("\"num_attention_heads\":\"2\""), read},
      {"config_positions_alias_differs", kCorrupt,
       "FILE: max_position_embeddings: got 32, expected 16, the value of n_positions",
       plus("\"max_position_embeddings\":32"), read},
      {"config_vocab_over_limit", kCorrupt,
       "FILE: vocab_size: got 16777217, expected an integer from 1 to 16777216",
       with("\"vocab_size\":50", "\"vocab_size\":16777217"), read},
      {"config_n_embd_over_limit", kCorrupt,
       "FILE: n_embd: got 131073, expected an integer from 1 to 131072",
       with("\"n_embd\":8", "\"n_embd\":131073"), read},
      {"config_n_layer_over_limit", kCorrupt,
       "FILE: n_layer: got 4097, expected an integer from 1 to 4096",
       with("\"n_layer\":1", "\"n_layer\":4097"), read},
      {"config_n_inner_over_limit", kCorrupt,
       "FILE: n_inner: got 1048577, expected an integer from 1 to 1048576",
       with("\"n_inner\":32", "\"n_inner\":1048577"), read},
      {"config_n_positions_over_limit", kCorrupt,
       "FILE: n_positions: got 4194305, expected an integer from 1 to 4194304",
       with("\"n_positions\":16", "\"n_positions\":4194305"), read},
      {"config_activation_unknown", kUnsupported,
       "FILE: activation_function: got \"gelu_10\", expected gelu, gelu_new, gelu_pytorch_tanh, "
       "gelu_fast, quick_gelu, relu, silu, swish or tanh",
       with("gelu_new", "gelu_10"), read},
      {"config_activation_none", kUnsupported,
       "FILE: activation_function: got \"none\", expected gelu, gelu_new, gelu_pytorch_tanh, "
       "gelu_fast, quick_gelu, relu, silu, swish or tanh",
       with("gelu_new", "none"), read},
      {"config_activation_empty", kUnsupported,
       "FILE: activation_function: got \"\", expected gelu, gelu_new, gelu_pytorch_tanh, "
       "gelu_fast, quick_gelu, relu, silu, swish or tanh",
       with("gelu_new", ""), read},
      {"config_activation_number", kCorrupt, "FILE: activation_function: got 1, expected a string",
       with("\"gelu_new\"", "1"), read},
      {"config_activation_array", kCorrupt,
       "FILE: activation_function: got [\"gelu_new\"], expected a string",
       with("\"gelu_new\"", "[\"gelu_new\"]"), read},
      {"config_epsilon_zero", kCorrupt,
       "FILE: layer_norm_epsilon: got 0, expected a number above 0 and at most 1",
       with("1e-05", "0"), read},
      {"config_epsilon_negative", kCorrupt,
       "FILE: layer_norm_epsilon: got -1e-05, expected a number above 0 and at most 1",
       with("1e-05", "-1e-05"), read},
      {"config_epsilon_two", kCorrupt,
       "FILE: layer_norm_epsilon: got 2, expected a number above 0 and at most 1",
       with("1e-05", "2"), read},
      {"config_epsilon_vanishes_in_float", kCorrupt,
       "FILE: layer_norm_epsilon: got 1e-60, expected a number above 0 and at most 1",
       with("1e-05", "1e-60"), read},
      {"config_epsilon_vanishes_in_double", kCorrupt,
       "FILE: layer_norm_epsilon: got 0.0, expected a number above 0 and at most 1",
       with("1e-05", "1e-4000"), read},
      {"config_epsilon_overflows", kCorrupt,
       "FILE: layer_norm_epsilon: got Infinity, expected a number above 0 and at most 1",
       with("1e-05", "1e4000"), read},
      {"config_epsilon_text", kCorrupt,
       "FILE: layer_norm_epsilon: got \"1e-05\", expected a number", with("1e-05", "\"1e-05\""),
       read},
      {"config_epsilon_true", kCorrupt, "FILE: layer_norm_epsilon: got true, expected a number",
       with("1e-05", "true"), read},
      {"config_dtype_integer", kCorrupt,
       "FILE: torch_dtype: got \"int8\", expected float64, float32, float16 or bfloat16",
       with("\"float32\"", "\"int8\""), read},
      {"config_dtype_auto", kCorrupt,
       "FILE: torch_dtype: got \"auto\", expected float64, float32, float16 or bfloat16",
       with("\"float32\"", "\"auto\""), read},
      {"config_dtype_number", kCorrupt, "FILE: torch_dtype: got 32, expected a string",
       with("\"float32\"", "32"), read},
  };
}

}  // namespace

std::vector<MalformedCase> config_cases() {
  std::vector<MalformedCase> cases = other_cases();
  for (auto* more : {size_cases, boolean_cases, token_id_cases}) {
    for (MalformedCase& one_case : more()) cases.push_back(std::move(one_case));
  }
  return cases;
}

}  // namespace caravan::test
