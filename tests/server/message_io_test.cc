// What clients' bytes may do to us: nothing but an INVALID_ARGUMENT.
#include "server/message_io.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <grpcpp/support/slice.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "espalier/v1/tree_decoder.pb.h"
#include "server/wire_guard.h"

namespace espalier {
namespace {

using testing::HasSubstr;

// In several slices, as a large message arrives.
grpc::ByteBuffer Bytes(const std::string& text, size_t slice_bytes = 1000) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < text.size(); at += slice_bytes) {
    slices.emplace_back(text.substr(at, slice_bytes));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

absl::Status Parse(const std::string& text) {
  v1::GenerateRequest message;
  return ParseMessage(Bytes(text), &message);
}

// A chain of `depth` prompt nodes below each other, written by hand.
std::string NestedRequest(int depth) {
  std::string node;
  const auto wrap = [&node](char tag) {
    std::string size;
    size_t left = node.size();
    do {
      size.push_back(static_cast<char>((left & 0x7F) | (left > 0x7F ? 0x80 : 0)));
      left >>= 7;
    } while (left > 0);
    node = tag + size + node;
  };
  for (int i = 1; i < depth; ++i) wrap((7 << 3) | 2);  // children
  wrap((5 << 3) | 2);                                  // root
  return node;
}

TEST(MessageIoTest, RoundTripInAnySlices) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (size_t slice : {size_t{1}, size_t{7}, size_t{100000}}) {
    v1::GenerateRequest message;
    message.set_request_id("id");
    v1::PromptNode* node = message.mutable_root();
    for (int i = 0; i < 50; ++i) {
      node->set_text(std::string(random() % 300, 'x'));
      node->mutable_generation()->add_stop("\n");
      (*node->mutable_generation()->mutable_logit_bias())[i] = 0.5f;
      node->add_children()->mutable_token_ids()->add_ids(-1);
      node = node->add_children();
    }
    v1::GenerateRequest parsed;
    ASSERT_TRUE(ParseMessage(Bytes(message.SerializeAsString(), slice), &parsed).ok());
    EXPECT_EQ(parsed.SerializeAsString(), message.SerializeAsString());

    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(SerializeMessage(message).Dump(&slices).ok());
    std::string out;
    for (const grpc::Slice& s : slices)
      out.append(reinterpret_cast<const char*>(s.begin()), s.size());
    EXPECT_EQ(out, message.SerializeAsString());
  }
}

TEST(MessageIoTest, EmptyBytesAreTheEmptyMessage) { EXPECT_TRUE(Parse("").ok()); }

TEST(MessageIoTest, InvalidUtf8IsRefusedByName) {
  v1::GenerateRequest message;
  message.mutable_root()->set_text("caf\xE9");
  const google::protobuf::LogSilencer silencer;  // serializing complains
  const absl::Status status = Parse(message.SerializeAsString());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("PromptNode.text: not valid UTF-8"));
}

TEST(MessageIoTest, NestingIsLimited) {
  // The request itself is one of the nested messages.
  EXPECT_TRUE(Parse(NestedRequest(kMaxWireDepth - 1)).ok());
  const absl::Status status = Parse(NestedRequest(kMaxWireDepth));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("nested deeper than 96"));
  EXPECT_FALSE(Parse(NestedRequest(50000)).ok());
}

TEST(MessageIoTest, ElementsAreLimited) {
  // 2 bytes each on the wire, and a hundred bytes or more each when parsed.
  const std::string child = {static_cast<char>((7 << 3) | 2), 0};
  std::string children;
  for (int i = 0; i < kMaxWireElements; ++i) children += child;
  const auto request = [](const std::string& root) {
    v1::GenerateRequest message;
    message.mutable_root();
    std::string bytes = message.SerializeAsString();
    EXPECT_EQ(bytes.size(), 2u);
    bytes.pop_back();
    size_t left = root.size();
    do {
      bytes.push_back(static_cast<char>((left & 0x7F) | (left > 0x7F ? 0x80 : 0)));
      left >>= 7;
    } while (left > 0);
    return bytes + root;
  };
  // The root is an element too.
  EXPECT_TRUE(Parse(request(children.substr(2))).ok());
  const absl::Status status = Parse(request(children));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("262144"));
}

TEST(MessageIoTest, UnknownFieldsAreSkippedButCounted) {
  const std::string unknown = {static_cast<char>(15 << 3), 1};  // field 15, varint
  v1::GenerateRequest message;
  message.mutable_root()->set_text("a");
  EXPECT_TRUE(Parse(unknown + message.SerializeAsString()).ok());
  std::string many;
  for (int i = 0; i <= kMaxWireElements; ++i) many += unknown;
  EXPECT_FALSE(Parse(many).ok());
}

TEST(MessageIoTest, LongPackedListsAreOneElement) {
  v1::GenerateRequest message;
  for (int i = 0; i < 2 * kMaxWireElements; ++i) {
    message.mutable_root()->mutable_token_ids()->add_ids(i % 100);
  }
  EXPECT_TRUE(Parse(message.SerializeAsString()).ok());
}

TEST(MessageIoTest, SizesBeyondTheMessageAreRefused) {
  const char root = (5 << 3) | 2;
  EXPECT_FALSE(Parse({root, 5, 0}).ok());
  EXPECT_FALSE(Parse({root, '\xFF', '\xFF', '\xFF', '\xFF', '\x07'}).ok());
  EXPECT_FALSE(Parse({root, '\xFF', '\xFF', '\xFF', '\xFF', '\x0F'}).ok());
  // A child that is longer than its parent.
  EXPECT_FALSE(Parse({root, 2, static_cast<char>((7 << 3) | 2), 4, 0, 0, 0, 0}).ok());
}

// What protobuf takes, the guard takes, and what the guard refuses, protobuf never sees.
TEST(MessageIoTest, RandomBytesNeitherCrashNorDisagreeWithProtobuf) {
  const uint32_t seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  v1::GenerateRequest valid;
  v1::PromptNode* node = valid.mutable_root();
  for (int i = 0; i < 6; ++i) {
    node->set_text("some text");
    node->mutable_generation()->set_temperature(0.5f);
    node->mutable_generation()->add_stop("stop");
    node->add_children()->mutable_token_ids()->add_ids(70000);
    node = node->add_children();
  }
  const std::string bytes = valid.SerializeAsString();
  const google::protobuf::LogSilencer silencer;  // of the reference's complaints
  int accepted = 0;
  constexpr int kRounds = 20000;
  for (int round = 0; round < kRounds; ++round) {
    std::string mutated =
        bytes.substr(0, random() % 4 == 0 ? random() % bytes.size() : bytes.size());
    for (uint32_t i = random() % 4; i > 0 && !mutated.empty(); --i) {
      mutated[random() % mutated.size()] = static_cast<char>(random());
    }
    v1::GenerateRequest reference;
    const bool protobuf_accepts = reference.ParseFromString(mutated);
    const absl::Status status = Parse(mutated);
    // Groups are the one thing that we refuse and protobuf skips.
    if (status.ok()) {
      EXPECT_TRUE(protobuf_accepts);
      ++accepted;
    } else {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    }
  }
  EXPECT_GT(accepted, kRounds / 100);  // or the test would say nothing
  EXPECT_LT(accepted, kRounds);
}

}  // namespace
}  // namespace espalier
