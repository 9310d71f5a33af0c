# Debian's libtorch names the libraries of OpenCV and FFmpeg as needed and calls nothing in them; they bring two
# hundred more. Finding 150,000 symbols among those takes every process 0.15 s before its main(). So a folder beside
# the programs answers to their names with one empty library, wherever libtorch turns out to load without them. A
# program that is moved away from the folder takes the real ones.
set(PELAGO_UNUSED_LIBRARIES ${CMAKE_BINARY_DIR}/bin/unused_libraries)

# pelago_leave_out_unused(LIBRARY NAMES): makes the folder for what LIBRARY needs of these names, a pattern.
function(pelago_leave_out_unused library names)
  find_program(READELF NAMES ${CMAKE_READELF} readelf)
  execute_process(COMMAND ${READELF} --dynamic ${library} OUTPUT_VARIABLE dynamic ERROR_QUIET)
  string(REGEX MATCHALL "\\[${names}[^]]*\\]" needed "${dynamic}")
  list(TRANSFORM needed REPLACE "[][]" "")
  if(NOT needed)
    return()
  endif()
  file(MAKE_DIRECTORY ${PELAGO_UNUSED_LIBRARIES})
  set(empty ${PELAGO_UNUSED_LIBRARIES}/libempty.so)
  file(WRITE ${CMAKE_BINARY_DIR}/empty.cpp "")
  execute_process(
    COMMAND ${CMAKE_CXX_COMPILER} -shared -nostdlib ${CMAKE_BINARY_DIR}/empty.cpp -o ${empty}
    RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
  foreach(name ${needed})
    file(CREATE_LINK libempty.so ${PELAGO_UNUSED_LIBRARIES}/${name} SYMBOLIC)
  endforeach()
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env LD_LIBRARY_PATH=${PELAGO_UNUSED_LIBRARIES} ldd -r ${library}
    RESULT_VARIABLE no_answer OUTPUT_VARIABLE complaints ERROR_VARIABLE complaints)
  if(failed OR no_answer OR complaints MATCHES "undefined symbol|no version information|not found")
    file(REMOVE_RECURSE ${PELAGO_UNUSED_LIBRARIES})
  endif()
endfunction()

find_library(TORCH_CPU_LIBRARY torch_cpu)
if(TORCH_CPU_LIBRARY AND NOT IS_DIRECTORY ${PELAGO_UNUSED_LIBRARIES})
  pelago_leave_out_unused(${TORCH_CPU_LIBRARY} "lib(opencv_|avcodec|avformat|avutil|swscale|swresample)")
endif()
# DT_RPATH, unlike the newer DT_RUNPATH, holds for what a library needs too.
list(APPEND CMAKE_BUILD_RPATH "$ORIGIN/unused_libraries")
add_link_options(LINKER:--disable-new-dtags)
