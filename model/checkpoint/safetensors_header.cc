#include "model/checkpoint/safetensors_header.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "model/checkpoint/quoted.h"

namespace espalier {
namespace {

using nlohmann::json;

// {"tensor": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
//  "__metadata__": {"key": "text", ...}}
// Every handler returns false at the first rule broken, which ends the parse.
class HeaderHandler : public nlohmann::json_sax<json> {
 public:
  absl::Status status() const { return status_; }
  std::vector<SafetensorsEntry> TakeEntries() { return std::move(entries_); }

  bool start_object(size_t) override {
    switch (where_) {
      case Where::kOutside:
        where_ = Where::kTop;
        return true;
      case Where::kTop:
        if (key_ == "__metadata__") {
          where_ = Where::kMetadata;
        } else {
          where_ = Where::kTensor;
          entries_.emplace_back().name = key_;
          fields_.clear();
        }
        return true;
      case Where::kMetadata:
      case Where::kTensor:
      case Where::kShape:
      case Where::kOffsets:
        return Unexpected("an object");
    }
    return false;
  }

  bool end_object() override {
    if (where_ == Where::kTensor && fields_.size() != 3) {
      return Refuse("has not all of dtype, shape and data_offsets");
    }
    where_ = where_ == Where::kTop ? Where::kOutside : Where::kTop;
    return true;
  }

  bool key(std::string& text) override {
    key_ = text;
    switch (where_) {
      case Where::kTop:
        return names_.insert(text).second || Refuse("occurs twice");
      case Where::kTensor:
        if (text != "dtype" && text != "shape" && text != "data_offsets") {
          return Refuse("is not a key of a tensor");
        }
        return fields_.insert(text).second || Refuse("occurs twice");
      case Where::kMetadata:
        return metadata_keys_.insert(text).second || Refuse("occurs twice");
      case Where::kOutside:
      case Where::kShape:
      case Where::kOffsets:
        return false;  // JSON has keys in objects only
    }
    return false;
  }

  bool start_array(size_t) override {
    if (where_ != Where::kTensor) return Unexpected("an array");
    if (key_ == "shape") {
      where_ = Where::kShape;
      return true;
    }
    if (key_ == "data_offsets") {
      where_ = Where::kOffsets;
      num_offsets_ = 0;
      return true;
    }
    return Unexpected("an array");
  }

  bool end_array() override {
    if (where_ == Where::kOffsets && num_offsets_ != 2) return Refuse("is not a pair");
    where_ = Where::kTensor;
    return true;
  }

  bool number_unsigned(uint64_t number) override {
    if (where_ == Where::kShape) {
      std::vector<int64_t>& shape = entries_.back().shape;
      if (shape.size() == kSafetensorsMaxDims) return Refuse("has more than 8 dimensions");
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Refuse("has a dimension of 2^63 or more");
      }
      shape.push_back(static_cast<int64_t>(number));
      return true;
    }
    if (where_ == Where::kOffsets) {
      if (num_offsets_ == 2) return Refuse("is not a pair");
      (num_offsets_ == 0 ? entries_.back().begin : entries_.back().end) = number;
      ++num_offsets_;
      return true;
    }
    return Unexpected("a number");
  }

  bool string(std::string& text) override {
    if (where_ == Where::kMetadata) return true;
    if (where_ != Where::kTensor || key_ != "dtype") return Unexpected("a string");
    entries_.back().dtype = text;
    return true;
  }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(int64_t) override { return Unexpected("a negative number"); }
  bool number_float(double, const std::string&) override { return Unexpected("a fraction"); }
  bool binary(json::binary_t&) override { return Unexpected("binary data"); }

  bool parse_error(size_t position, const std::string&, const json::exception&) override {
    status_ = absl::InvalidArgumentError(absl::StrCat("not JSON at byte ", position));
    return false;
  }

 private:
  enum class Where { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };

  // The key that was read last, below its tensor's name.
  std::string Path() const {
    std::string path;
    if (where_ == Where::kTensor || where_ == Where::kShape || where_ == Where::kOffsets) {
      path = absl::StrCat(Quoted(entries_.back().name), ", ");
    }
    return path + Quoted(key_);
  }
  bool Refuse(const char* why) {
    status_ = absl::InvalidArgumentError(absl::StrCat(Path(), " ", why));
    return false;
  }
  bool Unexpected(const char* what) {
    status_ = absl::InvalidArgumentError(absl::StrCat(what, " where none belongs, at ", Path()));
    return false;
  }

  Where where_ = Where::kOutside;
  std::string key_;
  int num_offsets_ = 0;
  absl::flat_hash_set<std::string> names_;          // keys of the top object
  absl::flat_hash_set<std::string> metadata_keys_;  // keys of __metadata__
  absl::flat_hash_set<std::string> fields_;         // keys of the tensor being read
  std::vector<SafetensorsEntry> entries_;
  absl::Status status_;
};

}  // namespace

absl::StatusOr<std::vector<SafetensorsEntry>> ParseSafetensorsHeader(std::string_view text) {
  HeaderHandler handler;
  json::sax_parse(text.begin(), text.end(), &handler);
  if (!handler.status().ok()) return handler.status();
  return handler.TakeEntries();
}

}  // namespace espalier
