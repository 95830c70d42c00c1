# Warnings, sanitizers and the two target shapes of this project.
add_library(espalier_options INTERFACE)
target_include_directories(espalier_options INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(espalier_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wnon-virtual-dtor>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall;-lineinfo;--expt-relaxed-constexpr>"
  "$<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>")
if(ESPALIER_SANITIZE)
  target_compile_options(espalier_options INTERFACE -fsanitize=address,undefined
                         -fno-sanitize-recover=undefined)
  target_link_options(espalier_options INTERFACE -fsanitize=address,undefined)
endif()
if(ESPALIER_TSAN)
  target_compile_options(espalier_options INTERFACE -fsanitize=thread)
  target_link_options(espalier_options INTERFACE -fsanitize=thread)
endif()
if(ESPALIER_FUZZ)
  target_compile_options(espalier_options INTERFACE
                         -fsanitize=fuzzer-no-link,address,undefined
                         -fno-sanitize-recover=undefined)
  target_link_options(espalier_options INTERFACE -fsanitize=address,undefined)
endif()

# espalier_library(name SOURCES a.cc b.cc [DEPS public...] [PRIVATE_DEPS private...])
function(espalier_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC espalier_options ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
endfunction()

# espalier_test(name SOURCES a_test.cc [DEPS libs...] [LABELS l...] [TIMEOUT seconds])
function(espalier_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE espalier_options ${ARG_DEPS} GTest::gmock
                        GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
                             ESPALIER_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
  if("gpu" IN_LIST ARG_LABELS)
    # A machine without a GPU skips all of them, and says so.
    set_tests_properties(${name} PROPERTIES SKIP_REGULAR_EXPRESSION
                          "there is no CUDA device;has the CPU backend only")
  endif()
endfunction()
