# pelago_room(NAME [TORCH] [CALM] USES room... LIBS target...): one static library from src/NAME/**.cpp. A calm
# room waits for chips, files or people: optimising it hard only costs time to build. What goes over whole models
# there is named in PELAGO_BUSY_SOURCES.
# Folders with a CMakeLists.txt of their own (the emulator) are separate libraries and left out.

add_library(pelago_options INTERFACE)
target_include_directories(pelago_options INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_compile_options(pelago_options INTERFACE -Wall -Wextra -Wshadow -Wconversion -Werror)
# gcc throws away what it no longer needs whenever its memory has grown by a third: a tenth of the time.
target_compile_options(pelago_options INTERFACE
  $<$<COMPILE_LANG_AND_ID:CXX,GNU>:--param=ggc-min-heapsize=600000>)
target_link_libraries(pelago_options INTERFACE Threads::Threads)

find_program(PELAGO_CCACHE ccache)
if(PELAGO_CCACHE)
  # gcc's precompiled headers cache only with these settings (ccache manual, "Precompiled headers").
  set(CMAKE_CXX_COMPILER_LAUNCHER
      ${CMAKE_COMMAND} -E env
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${PELAGO_CCACHE})
  add_compile_options($<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endif()

# pelago_keep_comments(TARGET): for one that makes a precompiled header. gcc knows the headers in it by a checksum of
# all their text and reads any other a second time, so ccache must not take what differs in comments for the same.
function(pelago_keep_comments target)
  if(PELAGO_CCACHE)
    list(TRANSFORM CMAKE_CXX_COMPILER_LAUNCHER REPLACE "^(CCACHE_SLOPPINESS=.*)" "\\1;CCACHE_COMMENTS=1"
         OUTPUT_VARIABLE launcher)
    set_target_properties(${target} PROPERTIES CXX_COMPILER_LAUNCHER "${launcher}")
  endif()
endfunction()

# Forty programs and libraries are linked to libtorch: 1.7 s of processor time each with GNU ld, 0.2 s with lld.
find_program(PELAGO_LLD ld.lld)
if(PELAGO_LLD)
  add_link_options(-fuse-ld=lld)
endif()

# Programs are compiled with -fPIC like the libraries: gcc refuses a precompiled header made with other
# code generation settings than -fPIE.
set(CMAKE_CXX_COMPILE_OPTIONS_PIE ${CMAKE_CXX_COMPILE_OPTIONS_PIC})

# libtorch's headers cost seconds a file; chips/torch.h is parsed once here and reused by every source that
# reaches it. Reading it back costs 1.7 s, so sources that do not need it go without.
file(WRITE ${CMAKE_BINARY_DIR}/torch_pch.cpp "// Exists to carry the precompiled chips/torch.h.\n")
add_library(pelago_torch_pch OBJECT ${CMAKE_BINARY_DIR}/torch_pch.cpp)
target_link_libraries(pelago_torch_pch PUBLIC pelago_options pelago_torch)
target_precompile_headers(pelago_torch_pch PRIVATE ${PROJECT_SOURCE_DIR}/src/chips/torch.h)
pelago_keep_comments(pelago_torch_pch)

file(GLOB_RECURSE headers RELATIVE ${PROJECT_SOURCE_DIR}/src CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*.h)
file(GLOB_RECURSE test_headers RELATIVE ${PROJECT_SOURCE_DIR}/tests CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/*.h)

# pelago_reaching(RESULT HEADER): this header and those of ours that reach it, as a pattern of what an #include
# says: a fixed point.
function(pelago_reaching result header)
  set(reaching ${header})
  set(grown TRUE)
  while(grown)
    set(grown FALSE)
    list(JOIN reaching "|" pattern)
    foreach(header ${headers} ${test_headers})
      if(NOT header IN_LIST reaching)
        set(path ${PROJECT_SOURCE_DIR}/src/${header})
        if(NOT EXISTS ${path})
          set(path ${PROJECT_SOURCE_DIR}/tests/${header})
        endif()
        file(STRINGS ${path} reaches REGEX "#include \"(${pattern})\"")
        if(reaches)
          list(APPEND reaching ${header})
          set(grown TRUE)
        endif()
      endif()
    endforeach()
  endwhile()
  set(${result} ${reaching} PARENT_SCOPE)
endfunction()
pelago_reaching(PELAGO_TORCH_HEADERS chips/torch.h)
pelago_reaching(PELAGO_TENSOR_HEADERS chips/tensor.h)
pelago_reaching(PELAGO_JSON_HEADERS base/text/json.h)

# pelago_use_torch(TARGET): links libtorch; those of the target's sources that reach its headers take them precompiled.
function(pelago_use_torch target)
  target_link_libraries(${target} PUBLIC pelago_torch)
  pelago_precompile(${target})
endfunction()

function(pelago_precompile target)
  target_precompile_headers(${target} REUSE_FROM pelago_torch_pch)
  list(JOIN PELAGO_TORCH_HEADERS "|" pattern)
  get_target_property(sources ${target} SOURCES)
  foreach(source ${sources})
    file(STRINGS ${source} reaches REGEX "#include \"(${pattern})\"")
    if(NOT reaches)
      set_source_files_properties(${source} PROPERTIES SKIP_PRECOMPILE_HEADERS ON)
    endif()
  endforeach()
endfunction()

set(PELAGO_BUSY_SOURCES
    "/(sites/exchange/|sites/protocol/messages[.]|train/grid/|train/health/|serve/sampling/)")

# pelago_calm(TARGET): compiled with less optimisation in a release, a quarter faster.
function(pelago_calm target)
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_compile_options(${target} PRIVATE -O1)
  endif()
endfunction()

# pelago_waiting(TARGET): not optimised at all, a quarter faster again: it waits for other processes. Not for what
# takes libtorch's precompiled header, which gcc reads back only with optimisation on.
function(pelago_waiting target)
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_compile_options(${target} PRIVATE -O0)
  endif()
endfunction()

function(pelago_room name)
  cmake_parse_arguments(ROOM "TORCH;CALM" "" "USES;LIBS" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${name}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "/src/chips/(emulator|emuccl)/")
  if(NOT sources)
    # Not torch_pch.cpp: what is set for a room's source would hold for the precompiled header too.
    set(sources ${CMAKE_BINARY_DIR}/only_headers.cpp)
    file(WRITE ${sources} "// For rooms that have only headers yet.\n")
  endif()
  if(ROOM_CALM AND CMAKE_BUILD_TYPE STREQUAL "Release")
    foreach(source ${sources})
      if(source MATCHES "${PELAGO_BUSY_SOURCES}")
        set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS -O2)
      endif()
    endforeach()
  endif()
  pelago_bundle(bundles ${sources})
  add_library(pelago_${name} STATIC ${bundles})
  set_target_properties(pelago_${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(pelago_${name} PUBLIC pelago_options ${ROOM_LIBS})
  if(ROOM_CALM)
    pelago_calm(pelago_${name})
  endif()
  if(ROOM_TORCH)
    pelago_use_torch(pelago_${name})
  endif()
  foreach(room ${ROOM_USES})
    target_link_libraries(pelago_${name} PUBLIC pelago_${room})
  endforeach()
endfunction()

# doctest's own code and main(), for every test program.
function(pelago_doctest_main target)
  if(NOT TARGET pelago_doctest_main)
    add_library(pelago_doctest_main OBJECT ${PROJECT_SOURCE_DIR}/tests/doctest_main.cpp)
    target_link_libraries(pelago_doctest_main PRIVATE pelago_options)
    pelago_calm(pelago_doctest_main)
  endif()
  target_link_libraries(${target} PRIVATE pelago_doctest_main)
endfunction()

# scripts/test counts a core as three places: a test that mostly waits, for chips or processes, takes one of them, a test
# that computes all the time two. COST is about how many seconds it takes: the longest begin first.
set(PELAGO_COMPUTES PROCESSORS 2)

# pelago_tests(ROOM source...): one doctest program from tests/ROOM/**_test.cpp and these, run by ctest under the
# room's name with the arguments in ROOM_cases, if there are any.
function(pelago_tests room)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/${room}/*_test.cpp)
  if(NOT sources)
    return()
  endif()
  pelago_bundle(bundles TESTS ${sources} ${ARGN})
  add_executable(${room}_tests ${bundles})
  pelago_doctest_main(${room}_tests)
  target_link_libraries(${room}_tests PRIVATE pelago_${room} rapidcheck)
  target_include_directories(${room}_tests PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  # What a test checks is built as it ships; the test's own code, mostly macros, only costs time to optimise.
  pelago_calm(${room}_tests)
  get_target_property(libraries pelago_${room} LINK_LIBRARIES)
  if("pelago_torch" IN_LIST libraries)
    pelago_precompile(${room}_tests)
  endif()
  add_test(NAME ${room} COMMAND ${room}_tests ${${room}_cases})
  set_tests_properties(${room} PROPERTIES TIMEOUT 900 ${PELAGO_COMPUTES})
endfunction()
