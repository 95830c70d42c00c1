# Every dependency is an installed package; nothing is downloaded at configure time.
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED) # module mode: Debian ships no protobuf-config.cmake
find_package(gRPC CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)

# gRPC, Protobuf and Abseil are linked from archives whose symbols are hidden: the server is one file
# that runs on a GPU machine without Debian's versions of them, and no library that brings a Protobuf
# of its own can clash with ours.
function(espalier_static_archives target)
  set(archives)
  foreach(name ${ARGN})
    if(NOT name MATCHES "^(dl|m|rt|pthread|atomic|systemd)$")
      find_library(ESPALIER_AR_${name} lib${name}.a REQUIRED)
      list(APPEND archives ${ESPALIER_AR_${name}})
    endif()
  endforeach()
  list(REMOVE_DUPLICATES archives)
  add_library(${target} INTERFACE)
  target_link_libraries(${target} INTERFACE -Wl,--start-group ${archives} -Wl,--end-group
                        Threads::Threads dl m rt atomic)
  # The fuzzers' sanitizer runtime is an archive as well, but one that shared libraries must see: it
  # takes the place of their allocator.
  if(NOT ESPALIER_FUZZ)
    target_link_options(${target} INTERFACE -Wl,--exclude-libs,ALL)
  endif()
endfunction()

pkg_check_modules(GRPCPP REQUIRED grpc++ protobuf)
espalier_static_archives(espalier_rpc grpc++_reflection ${GRPCPP_STATIC_LIBRARIES})
target_include_directories(espalier_rpc SYSTEM INTERFACE ${Protobuf_INCLUDE_DIRS})

pkg_check_modules(ABSL REQUIRED absl_status absl_statusor absl_strings absl_time
                  absl_flat_hash_map absl_str_format)
pkg_check_modules(RE2 REQUIRED re2)
# RE2 is before Abseil, on which it relies, in one list: no archive is named twice on a command line.
espalier_static_archives(espalier_absl ${RE2_STATIC_LIBRARIES} ${ABSL_STATIC_LIBRARIES})
