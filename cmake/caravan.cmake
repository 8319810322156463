# Compiler settings and caravan_module(), which makes one static library of one folder of src/.

get_filename_component(CARAVAN_ROOT "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(CARAVAN_WARNINGS -Wall -Wextra -Wshadow -Werror)

# Results must not depend on which instructions the compiler chose: no contraction to FMA unless the
# code asks for it, no reassociation.
add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off>
  $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-O2>)

# Programs find the CUDA backend beside themselves, or in lib/caravan beside their folder.
set(CMAKE_BUILD_RPATH "${CMAKE_BINARY_DIR};$ORIGIN")
set(CMAKE_INSTALL_RPATH "$ORIGIN;$ORIGIN/../lib/caravan")

# What a distribution builds its packages with (dpkg-buildflags hardening=+all): canaries, checked
# string functions, guard pages, landing pads for indirect jumps, no writable relocations. Read back
# from the files by tests/cli/hardening_test.py.
if(NOT CARAVAN_SANITIZE AND NOT CARAVAN_FUZZ)
  set(hardening -fstack-protector-strong -fstack-clash-protection -fcf-protection=full)
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:${hardening}>"
    "$<$<AND:$<COMPILE_LANGUAGE:CXX>,$<CONFIG:Release>>:-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=3>")
  foreach(flag IN LISTS hardening)
    add_compile_options("$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${flag}>")
  endforeach()
endif()
add_link_options(-Wl,-z,relro,-z,now,-z,noexecstack)

if(CARAVAN_SANITIZE)
  add_compile_options(-fsanitize=${CARAVAN_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${CARAVAN_SANITIZE})
endif()
if(CARAVAN_PORTABLE)
  add_link_options(-static)
endif()
if(CARAVAN_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

# caravan_module(NAME SOURCES files... DEPS targets... [TESTS files...])
# The library is caravan_NAME; its tests are one program, NAME_test, run by ctest. A module may
# link only the modules that docs/architecture.md names for it; tools/check_includes.py enforces
# the same for #include.
function(caravan_module name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;TESTS" ${ARGN})
  add_library(caravan_${name} STATIC ${ARG_SOURCES})
  target_include_directories(caravan_${name} PUBLIC ${CARAVAN_ROOT}/src ${CARAVAN_ROOT}/include)
  target_compile_options(caravan_${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${CARAVAN_WARNINGS}>)
  target_link_libraries(caravan_${name} PUBLIC ${ARG_DEPS})
  if(CARAVAN_TESTS AND ARG_TESTS)
    caravan_test(${name}_test SOURCES ${ARG_TESTS} DEPS caravan_${name})
  endif()
endfunction()

# caravan_test(NAME SOURCES files... DEPS targets...): a GoogleTest program known to ctest. Paths
# that tests need come as definitions, so that a test runs from any folder.
function(caravan_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${CARAVAN_WARNINGS}>)
  target_compile_definitions(${name} PRIVATE
    CARAVAN_SOURCE_DIR="${CARAVAN_ROOT}" CARAVAN_BINARY_DIR="${CMAKE_BINARY_DIR}")
  target_include_directories(${name} PRIVATE ${CARAVAN_ROOT})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest_main)
  add_test(NAME ${name} COMMAND ${name})
  # Tests share the cores: threads that wait must not spin.
  set_tests_properties(${name} PROPERTIES
    TIMEOUT 900 ENVIRONMENT OMP_WAIT_POLICY=passive LABELS unit)
endfunction()
