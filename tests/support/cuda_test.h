// A fixture for tests that need a CUDA device: skipped aloud where there is none.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>

#include "kernels/runtime/context.h"

namespace espalier::testing {

class CudaTest : public ::testing::Test {
 protected:
  explicit CudaTest(DType dtype = DType::kBF16) : dtype_(dtype) {}

  void SetUp() override {
    std::string error;
    ctx_ = Context::Cuda(/*index=*/0, dtype_, /*num_threads=*/4, &error);
    if (ctx_ == nullptr) GTEST_SKIP() << "SKIPPED: " << error;
  }
  void TearDown() override {
    if (ctx_ == nullptr) return;
    const std::optional<std::string> error = ctx_->TakeError();
    EXPECT_FALSE(error.has_value()) << *error;
  }

  const Context& ctx() const { return *ctx_; }
  DType dtype() const { return dtype_; }

 private:
  const DType dtype_;
  std::unique_ptr<Context> ctx_;
};

}  // namespace espalier::testing
