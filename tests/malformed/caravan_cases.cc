#include "format/model_dir.h"
#include "tests/malformed/builders.h"
#include "tests/malformed/cases.h"

namespace caravan::test {

namespace {

constexpr auto kCorrupt = ErrorCode::kCorrupt;
constexpr auto kUnsupported = ErrorCode::kUnsupported;

// config.json of the directory DIR.
void read_caravan(const std::string& input) {
  parse_model_dir(input, parse_model_config(input, "DIR/config.json"), "DIR");
}

std::string vector_entry(int name) {
  constexpr const char* kNames[] = {"ln_1.weight",      "ln_1.bias",      "attn.c_attn.bias",
                                    "attn.c_proj.bias", "ln_2.weight",    "ln_2.bias",
                                    "mlp.c_fc.bias",    "mlp.c_proj.bias"};
  return fmt::format(
      R"("h.0.{}":{{"dtype":"float32","layout":"out_in","in_features":0,"out_features":0,)"
      R"("xxh3":"0123456789abcdef"}},)",
      kNames[name]);
}

std::string matrix_entry(const char* name, int in, int out) {
  return fmt::format(
      R"("{}":{{"dtype":"float16","layout":"panel32","in_features":{},"out_features":{},)"
      R"("xxh3":"0123456789abcdef"}},)",
      name, in, out);
}

std::string engine() {
  std::string text =
      R"({"model_type":"gpt2","vocab_size":50,"n_embd":8,"n_layer":1,"n_head":2,"n_positions":16,)"
      R"("eos_token_id":1,"bos_token_id":1,)"
      R"("caravan":{"kind":"engine","format_version":1,"byte_order":"little","tensor_parallel":1,)"
      R"("has_own_head":false,"build":{"target":"cpu","dtype":"float16",)"
      R"("kv_cache_dtype":"float32",)"
      R"("max_batch_size":4,"max_input_len":10,"max_output_len":6},"tensors":{)";
  for (int i = 0; i < 8; ++i) text += vector_entry(i);
  text += matrix_entry("h.0.attn.c_attn.weight", 8, 24);
  text += matrix_entry("h.0.attn.c_proj.weight", 8, 8);
  text += matrix_entry("h.0.mlp.c_fc.weight", 8, 32);
  text += matrix_entry("h.0.mlp.c_proj.weight", 32, 8);
  text += matrix_entry("wte.weight", 8, 50);
  text += R"("wpe.weight":{"dtype":"float16","layout":"out_in","in_features":0,"out_features":0,)"
          R"("xxh3":"00000000000000aa"},)"
          R"("ln_f.weight":{"dtype":"float32","layout":"out_in","in_features":0,"out_features":0,)"
          R"("xxh3":"00000000000000bb"},)"
          R"("ln_f.bias":{"dtype":"float32","layout":"out_in","in_features":0,"out_features":0,)"
          R"("xxh3":"00000000000000cc"}}}})";
  return text;
}

std::string with(std::string_view from, std::string_view to) {
  return replaced(engine(), from, to);
}

std::string checkpoint(std::string_view from, std::string_view to) {
  return replaced(
      R"({"model_type":"gpt2","vocab_size":50,"n_embd":8,"n_layer":1,"n_head":2,"eos_token_id":1,)"
      R"("bos_token_id":1,"caravan":{"kind":"checkpoint","format_version":1,"tensor_parallel":2,)"
      R"("has_own_head":true}})",
      from, to);
}

constexpr const char* kLastTensor =
    R"({"dtype":"float32","layout":"out_in","in_features":0,"out_features":0,)"
    R"("xxh3":"00000000000000cc"})";

// The last tensor of the table replaced, or changed.
std::string last_tensor(std::string_view fields) { return with(kLastTensor, fields); }
std::string last_tensor_with(std::string_view from, std::string_view to) {
  return last_tensor(replaced(kLastTensor, from, to));
}

}  // namespace

std::vector<MalformedCase> caravan_cases() {
  const auto read = read_caravan;
  return {
      {"caravan_is_null", kCorrupt, "DIR/config.json: caravan: got null, expected an object",
       R"({"model_type":"gpt2","caravan":null})", read},
      {"caravan_is_text", kCorrupt, "DIR/config.json: caravan: got \"engine\", expected an object",
       R"({"model_type":"gpt2","caravan":"engine"})", read},
      {"caravan_is_an_array", kCorrupt, "DIR/config.json: caravan: got [], expected an object",
       R"({"model_type":"gpt2","caravan":[]})", read},
      {"caravan_is_empty", kCorrupt,
       "DIR/config.json: caravan.format_version: got nothing, expected an integer from 1 to "
       "2147483647",
       R"({"model_type":"gpt2","caravan":{}})", read},
      {"caravan_model_config_wrong", kCorrupt,
       "DIR/config.json: n_embd: got 8, expected a multiple of n_head, 3",
       with("\"n_head\":2", "\"n_head\":3"), read},
      {"caravan_kind_missing", kCorrupt,
       "DIR/config.json: caravan.kind: got nothing, expected a string",
       with("\"kind\":\"engine\",", ""), read},
      {"caravan_kind_unknown", kCorrupt,
       "DIR/config.json: caravan.kind: got \"plan\", expected \"checkpoint\" or \"engine\"",
       with("\"kind\":\"engine\"", "\"kind\":\"plan\""), read},
      {"caravan_kind_number", kCorrupt, "DIR/config.json: caravan.kind: got 1, expected a string",
       with("\"kind\":\"engine\"", "\"kind\":1"), read},
      {"caravan_version_missing", kCorrupt,
       "DIR/config.json: caravan.format_version: got nothing, expected an integer from 1 to "
       "2147483647",
       with("\"format_version\":1,", ""), read},
      {"caravan_version_newer", kUnsupported,
       "DIR/config.json: caravan.format_version: got 2, expected 1: convert the model again",
       with("\"format_version\":1", "\"format_version\":2"), read},
      {"caravan_version_zero", kCorrupt,
       "DIR/config.json: caravan.format_version: got 0, expected an integer from 1 to 2147483647",
       with("\"format_version\":1", "\"format_version\":0"), read},
      {"caravan_version_text", kCorrupt,
       "DIR/config.json: caravan.format_version: got \"1\", expected an integer from 1 to "
       "2147483647",
       with("\"format_version\":1", "\"format_version\":\"1\""), read},
      {"caravan_version_fraction", kCorrupt,
       "DIR/config.json: caravan.format_version: got 1.5, expected an integer from 1 to "
       "2147483647",
       with("\"format_version\":1", "\"format_version\":1.5"), read},
      {"caravan_big_endian", kUnsupported,
       "DIR/config.json: caravan.byte_order: got \"big\", expected \"little\"",
       with("\"little\"", "\"big\""), read},
      {"caravan_byte_order_number", kCorrupt,
       "DIR/config.json: caravan.byte_order: got 1, expected a string", with("\"little\"", "1"),
       read},
      {"caravan_tensor_parallel_missing", kCorrupt,
       "DIR/config.json: caravan.tensor_parallel: got nothing, expected an integer from 1 to 64",
       with("\"tensor_parallel\":1,", ""), read},
      {"caravan_tensor_parallel_zero", kCorrupt,
       "DIR/config.json: caravan.tensor_parallel: got 0, expected an integer from 1 to 64",
       checkpoint("\"tensor_parallel\":2", "\"tensor_parallel\":0"), read},
      {"caravan_tensor_parallel_65", kCorrupt,
       "DIR/config.json: caravan.tensor_parallel: got 65, expected an integer from 1 to 64",
       checkpoint("\"tensor_parallel\":2", "\"tensor_parallel\":65"), read},
      {"caravan_tensor_parallel_text", kCorrupt,
       "DIR/config.json: caravan.tensor_parallel: got \"2\", expected an integer from 1 to 64",
       checkpoint("\"tensor_parallel\":2", "\"tensor_parallel\":\"2\""), read},
      {"caravan_tensor_parallel_engine", kUnsupported,
       "DIR/config.json: caravan.tensor_parallel: got 2, expected 1: an engine is one rank's",
       with("\"tensor_parallel\":1", "\"tensor_parallel\":2"), read},
      {"caravan_own_head_missing", kCorrupt,
       "DIR/config.json: caravan.has_own_head: got nothing, expected true or false",
       with("\"has_own_head\":false,", ""), read},
      {"caravan_own_head_number", kCorrupt,
       "DIR/config.json: caravan.has_own_head: got 1, expected true or false",
       checkpoint("\"has_own_head\":true", "\"has_own_head\":1"), read},
      {"caravan_own_head_without_tensor", kCorrupt,
       "DIR/config.json: caravan.tensors: lm_head.weight is missing",
       with("\"has_own_head\":false", "\"has_own_head\":true"), read},
      {"caravan_checkpoint_kind_of_engine", kCorrupt,
       "DIR/config.json: caravan.build: got nothing, expected an object",
       checkpoint("\"checkpoint\",\"format_version\":1,\"tensor_parallel\":2",
                  "\"engine\",\"format_version\":1,\"tensor_parallel\":1"),
       read},
      {"caravan_build_missing", kCorrupt,
       "DIR/config.json: caravan.build: got nothing, expected an object",
       with("\"build\"", "\"built\""), read},
      {"caravan_build_target_number", kCorrupt,
       "DIR/config.json: caravan.build.target: got 0, expected a string",
       with("\"target\":\"cpu\"", "\"target\":0"), read},
      {"caravan_build_dtype_missing", kCorrupt,
       "DIR/config.json: caravan.build.dtype: got nothing, expected a string",
       with("\"cpu\",\"dtype\":\"float16\",", "\"cpu\","), read},
      {"caravan_build_dtype_unknown", kCorrupt,
       "DIR/config.json: caravan.build.dtype: got \"float8\", expected float32, float16 or "
       "bfloat16",
       with("\"cpu\",\"dtype\":\"float16\"", "\"cpu\",\"dtype\":\"float8\""), read},
      {"caravan_build_dtype_double", kCorrupt,
       "DIR/config.json: caravan.build.dtype: got \"float64\", expected float32, float16 or "
       "bfloat16",
       with("\"cpu\",\"dtype\":\"float16\"", "\"cpu\",\"dtype\":\"float64\""), read},
      {"caravan_build_kv_dtype_integer", kCorrupt,
       "DIR/config.json: caravan.build.kv_cache_dtype: got \"int4\", expected float32, float16, "
       "bfloat16, int8 or float8_e4m3fn",
       with("\"kv_cache_dtype\":\"float32\"", "\"kv_cache_dtype\":\"int4\""), read},
      {"caravan_build_batch_zero", kCorrupt,
       "DIR/config.json: caravan.build.max_batch_size: got 0, expected an integer from 1 to 65536",
       with("\"max_batch_size\":4", "\"max_batch_size\":0"), read},
      {"caravan_build_batch_huge", kCorrupt,
       "DIR/config.json: caravan.build.max_batch_size: got 65537, expected an integer from 1 to "
       "65536",
       with("\"max_batch_size\":4", "\"max_batch_size\":65537"), read},
      {"caravan_build_batch_missing", kCorrupt,
       "DIR/config.json: caravan.build.max_batch_size: got nothing, expected an integer from 1 to "
       "65536",
       with("\"max_batch_size\":4,", ""), read},
      {"caravan_build_input_negative", kCorrupt,
       "DIR/config.json: caravan.build.max_input_len: got -10, expected an integer from 1 to "
       "4194304",
       with("\"max_input_len\":10", "\"max_input_len\":-10"), read},
      {"caravan_build_output_text", kCorrupt,
       "DIR/config.json: caravan.build.max_output_len: got \"6\", expected an integer from 1 to "
       "4194304",
       with("\"max_output_len\":6", "\"max_output_len\":\"6\""), read},
      {"caravan_build_output_huge", kCorrupt,
       "DIR/config.json: caravan.build.max_output_len: got 9223372036854775807, expected an "
       "integer from 1 to 4194304",
       with("\"max_output_len\":6", "\"max_output_len\":9223372036854775807"), read},
      {"caravan_tensors_missing", kCorrupt,
       "DIR/config.json: caravan.tensors: got nothing, expected an object",
       with("\"tensors\"", "\"tensor\""), read},
      {"caravan_tensor_missing", kCorrupt,
       "DIR/config.json: caravan.tensors: ln_f.weight is missing",
       with("\"ln_f.weight\"", "\"ln_g.weight\""), read},
      {"caravan_tensor_unexpected", kCorrupt,
       "DIR/config.json: caravan.tensors: x has no place in the architecture",
       with("\"ln_f.bias\":",
            "\"x\":{\"dtype\":\"float32\",\"layout\":\"out_in\",\"in_features\":0,\"out_features\":"
            "0,\"xxh3\":\"0000000000000000\"},\"ln_f.bias\":"),
       read},
      {"caravan_tensor_twice", kCorrupt,
       "DIR/config.json: offset 2137: the key \"ln_f.weight\" appears twice in one object",
       with("\"ln_f.bias\"", "\"ln_f.weight\""), read},
      {"caravan_tensor_null", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias: got null, expected an object",
       last_tensor("null"), read},
      {"caravan_tensor_empty", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.dtype: got nothing, expected a string",
       last_tensor("{}"), read},
      {"caravan_tensor_dtype_integer", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.dtype: got \"int8\", expected float32, float16 "
       "or bfloat16",
       last_tensor_with("\"dtype\":\"float32\"", "\"dtype\":\"int8\""), read},
      {"caravan_tensor_layout_missing", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.layout: got nothing, expected a string",
       last_tensor_with("\"layout\":\"out_in\",", ""), read},
      {"caravan_tensor_layout_unknown", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.layout: got \"panel33\", expected in_out, "
       "out_in, panel32 or panel32_pairs",
       last_tensor_with("\"layout\":\"out_in\"", "\"layout\":\"panel33\""), read},
      {"caravan_tensor_layout_of_a_vector", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.layout: got panel32, which only matrices have",
       last_tensor_with("\"layout\":\"out_in\"", "\"layout\":\"panel32\""), read},
      {"caravan_tensor_features_of_a_vector", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias: got 8 x 1 features, expected 0 x 0",
       last_tensor_with("\"in_features\":0,\"out_features\":0",
                        "\"in_features\":8,\"out_features\":1"),
       read},
      {"caravan_tensor_features_negative", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.in_features: got -1, expected an integer from 0 "
       "to 1048576",
       last_tensor_with("\"in_features\":0", "\"in_features\":-1"), read},
      {"caravan_tensor_features_huge", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.out_features: got 9223372036854775807, expected "
       "an integer from 0 to 16777216",
       last_tensor_with("\"out_features\":0", "\"out_features\":9223372036854775807"), read},
      {"caravan_tensor_checksum_missing", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.xxh3: got nothing, expected a string",
       last_tensor_with(",\"xxh3\":\"00000000000000cc\"", ""), read},
      {"caravan_tensor_checksum_number", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.xxh3: got 204, expected a string",
       last_tensor_with("\"xxh3\":\"00000000000000cc\"", "\"xxh3\":204"), read},
      {"caravan_tensor_checksum_short", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.xxh3: got \"cc\", expected 16 hexadecimal "
       "digits",
       last_tensor_with("\"xxh3\":\"00000000000000cc\"", "\"xxh3\":\"cc\""), read},
      {"caravan_tensor_checksum_not_hex", kCorrupt,
       "DIR/config.json: caravan.tensors.ln_f.bias.xxh3: got \"000000000000000g\", expected 16 "
       "hexadecimal digits",
       last_tensor_with("\"xxh3\":\"00000000000000cc\"", "\"xxh3\":\"000000000000000g\""), read},
      {"caravan_matrix_features_transposed", kCorrupt,
       "DIR/config.json: caravan.tensors.h.0.attn.c_attn.weight: got 24 x 8 features, expected 8 x "
       "24",
       with("\"in_features\":8,\"out_features\":24", "\"in_features\":24,\"out_features\":8"),
       read},
      {"caravan_matrix_rows_missing", kCorrupt,
       "DIR/config.json: caravan.tensors.wte.weight: got 8 x 49 features, expected 8 x 50",
       with("\"in_features\":8,\"out_features\":50", "\"in_features\":8,\"out_features\":49"),
       read},
  };
}

}  // namespace caravan::test
