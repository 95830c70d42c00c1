#include "model/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/model/checkpoint/guarded_bytes.h"

namespace espalier {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A file with this header, padded with spaces to 8 bytes as writers do, and `data_bytes` of data
// that counts up from 0.
std::vector<std::byte> FileWith(std::string header, size_t data_bytes) {
  while (header.size() % 8 != 0) header.push_back(' ');
  const uint64_t length = header.size();
  std::vector<std::byte> file(sizeof(length));
  std::memcpy(file.data(), &length, sizeof(length));
  for (const char c : header) file.push_back(std::byte(c));
  for (size_t i = 0; i < data_bytes; ++i) file.push_back(std::byte(i % 251));
  return file;
}

void ExpectRefused(const std::string& header, size_t data_bytes, const std::string& part,
                   absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
  SCOPED_TRACE(header);
  const GuardedBytes bytes(FileWith(header, data_bytes));
  const auto file = SafetensorsFile::Parse(bytes.bytes(), "test.safetensors");
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), code) << file.status();
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("test.safetensors"));
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(part));
}

TEST(SafetensorsTest, ReadsTensorsInAnyOrder) {
  const std::string header =
      R"({"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[6,10]},)"
      R"("a":{"dtype":"I16","shape":[3],"data_offsets":[0,6]},"__metadata__":{"format":"pt"}})";
  const std::vector<std::byte> bytes = FileWith(header, 10);
  const auto file = SafetensorsFile::Parse(bytes, "test.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().size(), 2u);
  const SafetensorsTensor* b = (*file)->Find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, "BF16");
  EXPECT_THAT(b->shape, ElementsAre(2, 1));
  EXPECT_THAT(b->data, ElementsAre(std::byte{6}, std::byte{7}, std::byte{8}, std::byte{9}));
  EXPECT_EQ((*file)->Find("__metadata__"), nullptr);
}

TEST(SafetensorsTest, ReadsScalarsEmptyTensorsAndEmptyFiles) {
  const std::vector<std::byte> some =
      FileWith(R"({"scalar":{"dtype":"F64","shape":[],"data_offsets":[0,8]},)"
               R"("empty":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]}})",
               8);
  const auto file = SafetensorsFile::Parse(some, "test.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->Find("scalar")->data.size(), 8u);
  EXPECT_TRUE((*file)->Find("empty")->data.empty());
  EXPECT_TRUE(SafetensorsFile::Parse(FileWith("{}", 0), "test.safetensors").ok());
}

TEST(SafetensorsTest, RefusesEveryTruncation) {
  const std::vector<std::byte> whole =
      FileWith(R"({"a":{"dtype":"F16","shape":[4,3],"data_offsets":[0,24]}})", 24);
  ASSERT_TRUE(SafetensorsFile::Parse(whole, "test.safetensors").ok());
  for (size_t size = 0; size < whole.size(); ++size) {
    const GuardedBytes cut(std::span<const std::byte>(whole).first(size));
    const auto file = SafetensorsFile::Parse(cut.bytes(), "test.safetensors");
    ASSERT_FALSE(file.ok()) << "cut to " << size << " of " << whole.size() << " bytes";
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("truncated"));
  }
}

TEST(SafetensorsTest, RefusesAHeaderBeyondTheCapOrTheFile) {
  for (const uint64_t length :
       {SafetensorsFile::kMaxHeaderBytes + 1, uint64_t{1} << 63, ~uint64_t{0}}) {
    std::vector<std::byte> bytes = FileWith("{}", 0);
    std::memcpy(bytes.data(), &length, sizeof(length));
    const auto file = SafetensorsFile::Parse(bytes, "test.safetensors");
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("the limit is 100000000"));
  }
  std::vector<std::byte> bytes = FileWith("{}", 0);
  const uint64_t length = SafetensorsFile::kMaxHeaderBytes;
  std::memcpy(bytes.data(), &length, sizeof(length));
  const auto file = SafetensorsFile::Parse(bytes, "test.safetensors");
  EXPECT_THAT(std::string(file.status().message()), HasSubstr("truncated"));
}

TEST(SafetensorsTest, RefusesOffsetsThatDoNotTile) {
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
                7, "\"b\" begins at data byte 3");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[1,5]}})", 5,
                "begins at data byte 1");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 9,
                "5 bytes of data belong to no tensor");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 3, "truncated");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", 4, "[4, 0]");
}

TEST(SafetensorsTest, RefusesShapesThatAreNotTheSize) {
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,12]}})", 12, "[2, 2]");
  // Products that wrap around to the right size.
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
                "not the size");
  ExpectRefused(R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0,
                "not the size");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]}})", 0,
                "2^63");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", 1,
                "more than 8 dimensions");
}

TEST(SafetensorsTest, RefusesOtherElementTypesByName) {
  ExpectRefused(R"({"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}})", 2, "\"F4\"",
                absl::StatusCode::kUnimplemented);
}

TEST(SafetensorsTest, RefusesMisalignedData) {
  std::vector<std::byte> bytes =
      FileWith(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} )", 4);
  // One more byte of header, of which the length knows.
  uint64_t length;
  std::memcpy(&length, bytes.data(), sizeof(length));
  bytes.insert(bytes.begin() + static_cast<int64_t>(8 + length), std::byte{' '});
  ++length;
  std::memcpy(bytes.data(), &length, sizeof(length));
  const auto file = SafetensorsFile::Parse(bytes, "test.safetensors");
  EXPECT_EQ(file.status().code(), absl::StatusCode::kUnimplemented) << file.status();
}

TEST(SafetensorsTest, RefusesHeadersThatAreNotTheFormat) {
  ExpectRefused("", 0, "not JSON");
  ExpectRefused("{", 0, "not JSON");
  ExpectRefused("{} {}", 0, "not JSON");
  ExpectRefused("{\"a\xff\":{}}", 0, "not JSON");
  ExpectRefused("[]", 0, "an array where none belongs");
  ExpectRefused("3", 0, "a number where none belongs");
  ExpectRefused(R"({"a":3})", 0, "a number where none belongs");
  ExpectRefused(R"({"a":{}})", 0, "has not all of");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[1]}})", 1, "has not all of");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}})", 1, "a negative");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}})", 1, "a fraction");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1, "an array");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1, "a number");
  ExpectRefused(R"({"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", 1, "a number");
  ExpectRefused(R"({"a":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}})", 1, "an array");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", 1, "not a pair");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", 1, "not a pair");
  ExpectRefused(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1,
                "not a key of a tensor");
  ExpectRefused(R"({"__metadata__":{"a":{}}})", 0, "an object where none belongs");
  ExpectRefused(R"({"__metadata__":{"a":1}})", 0, "a number where none belongs");
}

TEST(SafetensorsTest, RefusesDuplicateKeys) {
  const std::string tensor = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  ExpectRefused(R"({"a":)" + tensor + R"(,"a":)" + tensor + "}", 0, "\"a\" occurs twice");
  ExpectRefused(R"({"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}})", 0,
                "\"dtype\" occurs twice");
  ExpectRefused(R"({"__metadata__":{},"__metadata__":{}})", 0, "occurs twice");
  ExpectRefused(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "\"k\" occurs twice");
}

// Nesting is refused at its first level, however deep it goes.
TEST(SafetensorsTest, DeepNestingIsCheapToRefuse) {
  ExpectRefused(std::string(1 << 20, '['), 0, "an array where none belongs");
}

}  // namespace
}  // namespace espalier
