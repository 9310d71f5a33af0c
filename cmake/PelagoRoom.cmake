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

# Programs are compiled with -fPIC like the libraries: gcc refuses a precompiled header made with other
# code generation settings than -fPIE.
set(CMAKE_CXX_COMPILE_OPTIONS_PIE ${CMAKE_CXX_COMPILE_OPTIONS_PIC})

# libtorch's headers cost seconds a file; chips/torch.h is parsed once here and reused by every source that
# reaches it. Reading it back costs 1.7 s, so sources that do not need it go without.
file(WRITE ${CMAKE_BINARY_DIR}/torch_pch.cpp "// Exists to carry the precompiled chips/torch.h.\n")
add_library(pelago_torch_pch OBJECT ${CMAKE_BINARY_DIR}/torch_pch.cpp)
target_link_libraries(pelago_torch_pch PUBLIC pelago_options pelago_torch)
target_precompile_headers(pelago_torch_pch PRIVATE ${PROJECT_SOURCE_DIR}/src/chips/torch.h)

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

set(PELAGO_BUSY_SOURCES "/(sites/exchange|sites/protocol/messages|train/grid|train/health|serve/sampling)/")

# pelago_calm(TARGET): compiled with less optimisation in a release, a quarter faster.
function(pelago_calm target)
  if(CMAKE_BUILD_TYPE STREQUAL "Release")
    target_compile_options(${target} PRIVATE -O1)
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
  add_library(pelago_${name} STATIC ${sources})
  set_target_properties(pelago_${name} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(pelago_${name} PUBLIC pelago_options ${ROOM_LIBS})
  if(ROOM_CALM)
    pelago_calm(pelago_${name})
    foreach(source ${sources})
      if(source MATCHES "${PELAGO_BUSY_SOURCES}" AND CMAKE_BUILD_TYPE STREQUAL "Release")
        set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS -O2)
      endif()
    endforeach()
  endif()
  if(ROOM_TORCH)
    pelago_use_torch(pelago_${name})
  endif()
  foreach(room ${ROOM_USES})
    target_link_libraries(pelago_${name} PUBLIC pelago_${room})
  endforeach()
endfunction()

# pelago_own_names(RESULT FILE): what a test source names for itself at file scope, as far as a pattern sees it.
function(pelago_own_names result file)
  file(READ ${file} text)
  string(REGEX REPLACE "[][;]" "(" text "${text}")  # a list of CMake's would break at these
  string(REGEX MATCHALL "\n(struct|class|enum class|enum) [A-Za-z_0-9]+" types "${text}")
  list(TRANSFORM types REPLACE ".* " "")
  string(REGEX MATCHALL "\n[A-Za-z][A-Za-z_0-9:<>,&* ]*[ &*][A-Za-z_0-9]+ *[({=]" others "${text}")
  list(FILTER others EXCLUDE REGEX "^\n(namespace|using|struct|class|enum|template) ")
  list(TRANSFORM others REPLACE ".*[ &*]([A-Za-z_0-9]+) *[({=]$" "\\1")
  set(${result} ${types} ${others} PARENT_SCOPE)
endfunction()

# pelago_bundle(RESULT source...): the sources of one test program, in a release up to six to a file: they read the
# same headers, which is where the time goes. Sources that name the same things for themselves keep apart.
# libtorch's log defines a CHECK too; whichever header comes last wins, so libtorch's comes before all of doctest's.
function(pelago_bundle result)
  if(NOT CMAKE_BUILD_TYPE STREQUAL "Release")
    set(${result} ${ARGN} PARENT_SCOPE)
    return()
  endif()
  list(JOIN PELAGO_TORCH_HEADERS "|" torch_headers)
  list(JOIN PELAGO_TENSOR_HEADERS "|" tensor_headers)
  set(bundles)
  foreach(source ${ARGN})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    file(STRINGS ${source} reaches_torch REGEX "#include \"(${torch_headers})\"")
    file(STRINGS ${source} reaches_tensor REGEX "#include \"(${tensor_headers})\"")
    set(first "")
    if(reaches_torch)
      set(first "#include \"chips/torch.h\"\n")
    elseif(reaches_tensor)
      set(first "#include \"chips/tensor.h\"\n")
    endif()
    pelago_own_names(names ${source})
    set(place "")
    foreach(bundle ${bundles})
      set(shared ${names})
      list(FILTER shared INCLUDE REGEX "^(${names_in_${bundle}})$")
      if(NOT shared AND num_in_${bundle} LESS 6 AND first STREQUAL first_of_${bundle})
        set(place ${bundle})
        break()
      endif()
    endforeach()
    if(NOT place)
      file(RELATIVE_PATH place ${PROJECT_SOURCE_DIR} ${source})
      list(APPEND bundles ${place})
      set(num_in_${place} 0)
      set(names_in_${place} "nothing yet")
      set(first_of_${place} "${first}")
      set(text_of_${place} "${first}")
    endif()
    math(EXPR num_in_${place} "${num_in_${place}} + 1")
    list(JOIN names "|" pattern)
    string(APPEND names_in_${place} "|${pattern}")
    string(APPEND text_of_${place} "#include \"${source}\"\n")
  endforeach()
  set(sources)
  foreach(bundle ${bundles})
    set(source ${CMAKE_BINARY_DIR}/bundles/${bundle})
    file(CONFIGURE OUTPUT ${source} CONTENT "${text_of_${bundle}}" @ONLY)
    # A local of one source may be called like a function of another.
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS -Wno-shadow)
    list(APPEND sources ${source})
  endforeach()
  set(${result} ${sources} PARENT_SCOPE)
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
  pelago_bundle(bundles ${sources} ${ARGN})
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
