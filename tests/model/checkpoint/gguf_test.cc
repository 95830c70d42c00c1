#include "model/checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tests/model/checkpoint/gguf_writer.h"
#include "tests/model/checkpoint/guarded_bytes.h"

namespace espalier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Numbers of the specification.
constexpr uint32_t kU8 = 0, kI8 = 1, kU16 = 2, kI16 = 3, kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7,
                   kString = 8, kArray = 9, kU64 = 10, kI64 = 11, kF64 = 12;
constexpr uint32_t kGgmlF32 = 0, kGgmlQ8_0 = 8, kGgmlQ5_K = 13;

// The parse of `writer` fails with this code and a message that holds each of these.
void ExpectRefused(const GgufWriter& writer, size_t data_bytes, absl::StatusCode code,
                   const std::vector<std::string>& parts) {
  const GuardedBytes bytes(writer.Build(data_bytes));
  const auto file = GgufFile::Parse(bytes.bytes(), "test.gguf");
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), code) << file.status();
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("test.gguf"));
  for (const std::string& part : parts) {
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(part));
  }
}

GgufWriter EveryType() {
  GgufWriter writer;
  writer.Add<uint8_t>("u8", kU8, 200);
  writer.Add<int8_t>("i8", kI8, -100);
  writer.Add<uint16_t>("u16", kU16, 60000);
  writer.Add<int16_t>("i16", kI16, -30000);
  writer.Add<uint32_t>("u32", kU32, 4000000000);
  writer.Add<int32_t>("i32", kI32, -2000000000);
  writer.Add<float>("f32", kF32, 1.5f);
  writer.Add<uint8_t>("bool", kBool, 1);
  writer.AddString("string", "text");
  writer.Add<uint64_t>("u64", kU64, uint64_t{1} << 40);
  writer.Add<uint64_t>("huge", kU64, std::numeric_limits<uint64_t>::max());
  writer.Add<int64_t>("i64", kI64, -(int64_t{1} << 40));
  writer.Add<double>("f64", kF64, -2.25);
  writer.AddArray<std::string>("strings", kString, {"", "a", std::string("b\0c", 3)});
  writer.AddArray<float>("floats", kF32, {0.5f, -1.0f});
  writer.AddArray<uint32_t>("numbers", kU32, {7, 8});
  writer.AddArray<int32_t>("nothing", kI32, {});
  return writer;
}

TEST(GgufTest, ReadsEveryMetadataType) {
  const std::vector<std::byte> bytes = EveryType().Build(0);
  const auto file = *GgufFile::Parse(bytes, "test.gguf");
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(*file->GetInt("u8", kMin, kMax), 200);
  EXPECT_EQ(*file->GetInt("i8", kMin, kMax), -100);
  EXPECT_EQ(*file->GetInt("u16", kMin, kMax), 60000);
  EXPECT_EQ(*file->GetInt("i16", kMin, kMax), -30000);
  EXPECT_EQ(*file->GetU32("u32"), 4000000000u);
  EXPECT_EQ(*file->GetInt("i32", kMin, kMax), -2000000000);
  EXPECT_EQ(*file->GetInt("u64", kMin, kMax), int64_t{1} << 40);
  EXPECT_EQ(*file->GetInt("i64", kMin, kMax), -(int64_t{1} << 40));
  EXPECT_EQ(*file->GetF32("f32"), 1.5f);
  EXPECT_EQ(*file->GetF32("f64"), -2.25f);
  EXPECT_EQ(*file->GetBool("bool"), true);
  EXPECT_EQ(*file->GetString("string"), "text");
  EXPECT_THAT(*file->GetStringArray("strings"), ElementsAre("", "a", std::string("b\0c", 3)));
  EXPECT_THAT(*file->GetF32Array("floats"), ElementsAre(0.5f, -1.0f));
  EXPECT_THAT(*file->GetI32Array("numbers"), ElementsAre(7, 8));
  EXPECT_THAT(*file->GetI32Array("nothing"), ElementsAre());
}

TEST(GgufTest, GettersRefuseWhatDoesNotFit) {
  const std::vector<std::byte> bytes = EveryType().Build(0);
  const auto file = *GgufFile::Parse(bytes, "test.gguf");
  EXPECT_TRUE(absl::IsNotFound(file->GetU32("absent").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetU32("i8").status()));   // negative
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetU32("u64").status()));  // too large
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetU32("f32").status()));  // not an integer
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetU32("bool").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetU32("numbers").status()));  // an array
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetInt("huge", 0, 1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetF32("u32").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetBool("u8").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetString("strings").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetStringArray("string").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetStringArray("floats").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetF32Array("numbers").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(file->GetI32Array("strings").status()));
  const absl::Status out_of_range = file->GetInt("u8", 0, 199).status();
  EXPECT_THAT(std::string(out_of_range.message()), HasSubstr("\"u8\" is 200, not in 0 to 199"));
}

TEST(GgufTest, ReadsTensorsOfBothVersions) {
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter writer;
    writer.version = version;
    writer.AddTensor("matrix", {3, 2}, kGgmlF32, 0);
    writer.AddTensor("blocks", {64, 1, 2}, kGgmlQ8_0, 32);
    const std::vector<std::byte> bytes = writer.Build(32 + 4 * 34);
    const auto file = GgufFile::Parse(bytes, "test.gguf");
    ASSERT_TRUE(file.ok()) << file.status();
    const ConstMatrix* matrix = (*file)->FindTensor("matrix");
    ASSERT_NE(matrix, nullptr);
    EXPECT_EQ(matrix->rows, 2);
    EXPECT_EQ(matrix->cols, 3);
    EXPECT_EQ(matrix->dtype, DType::kF32);
    const ConstMatrix* blocks = (*file)->FindTensor("blocks");
    ASSERT_NE(blocks, nullptr);
    EXPECT_EQ(blocks->rows, 2);
    EXPECT_EQ(blocks->cols, 64);
    EXPECT_EQ(blocks->dtype, DType::kQ8_0);
    // The writer's data counts up from 0, so the first byte is the data offset.
    EXPECT_EQ(*static_cast<const uint8_t*>(blocks->data), 32);
    EXPECT_EQ((*file)->FindTensor("absent"), nullptr);
  }
}

TEST(GgufTest, HonoursTheAlignmentKey) {
  GgufWriter writer;
  writer.alignment = 256;
  writer.Add<uint32_t>("general.alignment", kU32, 256);
  writer.AddTensor("a", {4}, kGgmlF32, 0);
  writer.AddTensor("b", {4}, kGgmlF32, 256);
  const std::vector<std::byte> bytes = writer.Build(256 + 16);
  const auto file = GgufFile::Parse(bytes, "test.gguf");
  ASSERT_TRUE(file.ok()) << file.status();
  const auto* data = static_cast<const std::byte*>((*file)->FindTensor("b")->data);
  EXPECT_EQ((data - bytes.data()) % 256, 0);
}

// Whatever the file is cut to, the reader says so and reads nothing behind the cut.
TEST(GgufTest, RefusesEveryTruncation) {
  GgufWriter writer = EveryType();
  writer.AddTensor("tensor", {32, 2}, kGgmlQ8_0, 0);
  const std::vector<std::byte> whole = writer.Build(68);
  ASSERT_TRUE(GgufFile::Parse(whole, "test.gguf").ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    const GuardedBytes cut(std::span<const std::byte>(whole).first(size));
    const auto file = GgufFile::Parse(cut.bytes(), "test.gguf");
    ASSERT_FALSE(file.ok()) << "cut to " << size << " of " << whole.size() << " bytes";
    EXPECT_TRUE(absl::IsInvalidArgument(file.status())) << file.status();
  }
}

TEST(GgufTest, RefusesOtherVersions) {
  for (const uint32_t version : {0u, 1u, 4u}) {
    GgufWriter writer;
    writer.version = version;
    ExpectRefused(writer, 0, absl::StatusCode::kUnimplemented,
                  {"version " + std::to_string(version)});
  }
  GgufWriter big_endian;
  big_endian.version = 0x03000000;
  ExpectRefused(big_endian, 0, absl::StatusCode::kUnimplemented, {"big-endian"});
}

TEST(GgufTest, RefusesClaimsBeyondTheFile) {
  for (const uint64_t claimed : {uint64_t{1} << 20, uint64_t{1} << 61, uint64_t{1} << 62,
                                 std::numeric_limits<uint64_t>::max()}) {
    for (const uint32_t type : {kU8, kF32, kString, kI64}) {
      GgufWriter writer;
      writer.AddHollowArray("array", type, claimed);
      ExpectRefused(writer, 0, absl::StatusCode::kInvalidArgument, {"truncated"});
    }
    GgufWriter wide;
    wide.AddTensor("wide", {claimed / 2 * 2}, kGgmlF32, 0);
    ExpectRefused(wide, 64, absl::StatusCode::kInvalidArgument, {"\"wide\""});
    GgufWriter product;
    product.AddTensor("product", {claimed, claimed}, kGgmlF32, 0);
    ExpectRefused(product, 64, absl::StatusCode::kInvalidArgument, {"\"product\""});
    GgufWriter far;
    far.AddTensor("far", {4}, kGgmlF32, claimed / 32 * 32);
    ExpectRefused(far, 64, absl::StatusCode::kInvalidArgument, {"\"far\"", "truncated"});
  }
}

TEST(GgufTest, RefusesInconsistentTensors) {
  const auto expect_refused = [](const std::vector<uint64_t>& dims, uint64_t offset,
                                 const std::string& part) {
    GgufWriter writer;
    writer.AddTensor("bad", dims, kGgmlQ8_0, offset);
    ExpectRefused(writer, 4096, absl::StatusCode::kInvalidArgument, {"\"bad\"", part});
  };
  expect_refused({}, 0, "0 dimensions");
  expect_refused({32, 1, 1, 1, 1}, 0, "5 dimensions");
  expect_refused({32, 0}, 0, "dimension 1 = 0");
  expect_refused({48}, 0, "not a multiple of Q8_0's block of 32");
  expect_refused({32}, 8, "not a multiple of the alignment 32");
}

TEST(GgufTest, RefusesDuplicatesAndOverlap) {
  GgufWriter keys;
  keys.Add<uint32_t>("key", kU32, 1);
  keys.Add<uint32_t>("key", kU32, 1);
  ExpectRefused(keys, 0, absl::StatusCode::kInvalidArgument, {"\"key\" occurs twice"});
  GgufWriter tensors;
  tensors.AddTensor("twin", {8}, kGgmlF32, 0);
  tensors.AddTensor("twin", {8}, kGgmlF32, 32);
  ExpectRefused(tensors, 64, absl::StatusCode::kInvalidArgument, {"\"twin\" occurs twice"});
  GgufWriter overlap;
  overlap.AddTensor("second", {8}, kGgmlF32, 32);
  overlap.AddTensor("first", {9}, kGgmlF32, 0);
  ExpectRefused(overlap, 64, absl::StatusCode::kInvalidArgument,
                {"\"first\" and \"second\" overlap"});
}

TEST(GgufTest, RefusesOtherElementTypesByName) {
  GgufWriter known;
  known.AddTensor("blk.0.ffn_up.weight", {256}, kGgmlQ5_K, 0);
  ExpectRefused(known, 4096, absl::StatusCode::kUnimplemented, {"blk.0.ffn_up.weight", "Q5_K"});
  GgufWriter unknown;
  unknown.AddTensor("x", {256}, 0xffffffff, 0);
  ExpectRefused(unknown, 4096, absl::StatusCode::kUnimplemented, {"number 4294967295"});
}

TEST(GgufTest, RefusesBadMetadataStructure) {
  GgufWriter type;
  type.Add<uint32_t>("key", 13, 0);
  ExpectRefused(type, 0, absl::StatusCode::kInvalidArgument, {"\"key\"", "unknown type 13"});
  GgufWriter nested;
  nested.AddHollowArray("key", kArray, 1);
  ExpectRefused(nested, 0, absl::StatusCode::kUnimplemented, {"array of arrays"});
  for (const uint32_t alignment : {0u, 4u, 24u, 1u << 17}) {
    GgufWriter writer;
    writer.Add<uint32_t>("general.alignment", kU32, alignment);
    ExpectRefused(writer, 0, absl::StatusCode::kInvalidArgument, {"general.alignment"});
  }
}

TEST(GgufTest, NamesThePathOfWhatItCannotOpen) {
  const auto absent = GgufFile::Open("/no/such/model.gguf");
  EXPECT_TRUE(absl::IsNotFound(absent.status()));
  EXPECT_THAT(std::string(absent.status().message()), HasSubstr("/no/such/model.gguf"));
  EXPECT_TRUE(absl::IsInvalidArgument(GgufFile::Open("/dev/null").status()));
  EXPECT_FALSE(GgufFile::Open("/").ok());
}

}  // namespace
}  // namespace espalier
