#include "model/checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "model/checkpoint/quoted.h"
#include "model/checkpoint/safetensors_header.h"

namespace espalier {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors is read in place");

// Every element type of the format with whole bytes; 0: unknown.
uint64_t ElementBytes(std::string_view dtype) {
  struct Type {
    std::string_view name;
    uint64_t bytes;
  };
  constexpr Type kTypes[] = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"F8_E8M0", 1},
      {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},     {"U32", 4},
      {"F32", 4},  {"I64", 8}, {"U64", 8}, {"F64", 8},     {"C64", 8},
  };
  const auto* type = std::ranges::find(kTypes, dtype, &Type::name);
  return type == std::end(kTypes) ? 0 : type->bytes;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t dim : shape) absl::StrAppend(&text, text.size() > 1 ? ", " : "", dim);
  return text + "]";
}

// Whether shape and element type say as many bytes as the offsets do.
bool SizeMatches(const SafetensorsEntry& entry, uint64_t element_bytes) {
  uint64_t bytes = element_bytes;
  for (const int64_t dim : entry.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dim), &bytes)) return false;
  }
  return bytes == entry.end - entry.begin;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  auto mapped = MappedFile::Open(path);
  if (!mapped.ok()) return mapped.status();
  auto file = Parse(mapped->bytes(), path);
  if (file.ok()) (*file)->file_ = *std::move(mapped);
  return file;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Parse(
    std::span<const std::byte> bytes, std::string name) {
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(std::move(name)));
  if (absl::Status status = file->ParseBytes(bytes); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(file->name_, ": ", status.message()));
  }
  return file;
}

absl::Status SafetensorsFile::ParseBytes(std::span<const std::byte> bytes) {
  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("truncated: ", bytes.size(), " bytes, a safetensors file has at least 8"));
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("not safetensors: a header of ", header_bytes,
                                                   " bytes, the limit is ", kMaxHeaderBytes));
  }
  const std::span<const std::byte> after_length = bytes.subspan(sizeof(header_bytes));
  if (header_bytes > after_length.size()) {
    return absl::InvalidArgumentError(absl::StrCat("truncated: a header of ", header_bytes,
                                                   " bytes in a file of ", bytes.size()));
  }
  auto entries =
      ParseSafetensorsHeader({reinterpret_cast<const char*>(after_length.data()), header_bytes});
  if (!entries.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("header: ", entries.status().message()));
  }

  // The format asks that tensors fill the data without holes; so they cannot overlap either.
  const std::span<const std::byte> data = after_length.subspan(header_bytes);
  std::ranges::sort(*entries, {}, [](const SafetensorsEntry& entry) {
    return std::pair(entry.begin, entry.end);
  });
  uint64_t filled = 0;
  for (SafetensorsEntry& entry : *entries) {
    const std::string shown = absl::StrCat("tensor ", Quoted(entry.name));
    const uint64_t element_bytes = ElementBytes(entry.dtype);
    if (element_bytes == 0) {
      return absl::UnimplementedError(
          absl::StrCat(shown, " has unknown element type ", Quoted(entry.dtype)));
    }
    if (entry.begin > entry.end || !SizeMatches(entry, element_bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(
          shown, " has shape ", ShapeText(entry.shape), " of ", entry.dtype,
          ", which is not the size of its data_offsets [", entry.begin, ", ", entry.end, "]"));
    }
    if (entry.end > data.size()) {
      return absl::InvalidArgumentError(absl::StrCat("truncated: ", shown, " ends at data byte ",
                                                     entry.end, ", the file has ", data.size()));
    }
    if (entry.begin != filled) {
      return absl::InvalidArgumentError(absl::StrCat(shown, " begins at data byte ", entry.begin,
                                                     ", the tensor before ends at ", filled,
                                                     ": data overlaps or has a hole"));
    }
    filled = entry.end;
    // Elements are read in place.
    if ((sizeof(header_bytes) + header_bytes + entry.begin) % element_bytes != 0) {
      return absl::UnimplementedError(absl::StrCat(
          shown, " is not aligned to its elements of ", element_bytes,
          " bytes (the header is not padded); write the file again with a current safetensors"));
    }
    tensors_.emplace(std::move(entry.name),
                     SafetensorsTensor{std::move(entry.dtype), std::move(entry.shape),
                                       data.subspan(entry.begin, entry.end - entry.begin)});
  }
  if (filled != data.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(data.size() - filled, " bytes of data belong to no tensor"));
  }
  return absl::OkStatus();
}

const SafetensorsTensor* SafetensorsFile::Find(std::string_view tensor_name) const {
  const auto it = tensors_.find(tensor_name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace espalier
