#include "format/training_form.h"

#include <gtest/gtest.h>

namespace caravan {
namespace {

std::vector<StoredTensor> named(const std::vector<std::string>& names) {
  std::vector<StoredTensor> tensors;
  for (const std::string& name : names) tensors.push_back({.name = name, .shape = {4}});
  return tensors;
}

std::vector<std::string> names_of(std::vector<StoredTensor> tensors) {
  undo_training_form(tensors, "DIR");
  std::vector<std::string> names;
  for (const StoredTensor& tensor : tensors) names.push_back(tensor.name);
  return names;
}

using Names = std::vector<std::string>;

TEST(TrainingFormTest, PrefixesThatAllNamesHaveAreStripped) {
  const Names plain = {"lm_head.weight", "transformer.wte.weight"};
  EXPECT_EQ(names_of(named(plain)), plain);
  for (const std::string prefix :
       {"module.", "model.", "_orig_mod.", "_forward_module.", "pretrained_model.",
        "module._orig_mod.", "_orig_mod.module.model.", "transformer.", "model.transformer."}) {
    EXPECT_EQ(names_of(named({prefix + plain[0], prefix + plain[1]})), plain) << prefix;
  }
}

TEST(TrainingFormTest, NamesThatAreNotAllAlikeStay) {
  for (const Names& names :
       {Names{"model.lm_head.weight", "transformer.wte.weight"},
        Names{"transformer.wte.weight", "transformer.h.0.ln_1.bias"},  // Hugging Face's own
        Names{"wte.weight", "h.0.ln_1.bias"}, Names{"module."}, Names{}}) {
    EXPECT_EQ(names_of(named(names)), names);
  }
}

StoredTensor matrix(const std::string& name, int64_t rows, int64_t columns) {
  return {.name = name, .shape = {rows, columns}};
}

TEST(TrainingFormTest, LinearLayersAreTurnedWhenEveryQkvIs) {
  std::vector<StoredTensor> tensors = {
      matrix("h.0.attn.c_attn.weight", 12, 4),
      matrix("h.0.attn.c_proj.weight", 4, 4),
      matrix("h.0.mlp.c_fc.weight", 16, 4),
      matrix("h.0.mlp.c_proj.weight", 4, 16),
      matrix("wte.weight", 9, 4),
      matrix("wpe.weight", 5, 4),
  };
  const std::vector<StoredTensor> before = tensors;
  undo_training_form(tensors, "DIR");
  EXPECT_EQ(tensors[0].shape, (Shape{4, 12}));
  EXPECT_EQ(tensors[0].strides, (Strides{1, 4}));
  EXPECT_TRUE(tensors[0].is_transposed());
  EXPECT_EQ(tensors[1].shape, (Shape{4, 4}));
  EXPECT_TRUE(tensors[1].is_transposed());
  EXPECT_EQ(tensors[3].shape, (Shape{16, 4}));
  EXPECT_EQ(tensors[4].shape, (Shape{9, 4}));
  EXPECT_TRUE(tensors[4].is_contiguous());
  EXPECT_TRUE(tensors[5].is_contiguous());

  // One layer as Hugging Face stores it: nothing is turned, and its shapes are refused by name.
  tensors = before;
  tensors.push_back(matrix("h.1.attn.c_attn.weight", 4, 12));
  undo_training_form(tensors, "DIR");
  EXPECT_EQ(tensors[0].shape, (Shape{12, 4}));
  EXPECT_TRUE(tensors[1].is_contiguous());
}

TEST(StoredTensorTest, TransposingTwiceChangesNothing) {
  const StoredTensor plain = matrix("a", 3, 5);
  const StoredTensor turned = plain.transposed();
  EXPECT_EQ(turned.shape, (Shape{5, 3}));
  EXPECT_EQ(turned.strides, (Strides{1, 5}));
  EXPECT_EQ(turned.span_bytes(), plain.num_bytes());
  EXPECT_TRUE(turned.transposed().is_contiguous());
  EXPECT_TRUE(matrix("row", 1, 5).transposed().is_contiguous());
}

}  // namespace
}  // namespace caravan
