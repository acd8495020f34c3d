# find_package(edgeseg) gives the target edgeseg::edgeseg. Relative to this file, so that the folder
# of the wheel may lie anywhere: -Dedgeseg_ROOT=<site-packages>/edgeseg
get_filename_component(_edgeseg_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
set(_edgeseg_library "${_edgeseg_prefix}/lib/libedgeseg.so.0")

if(NOT EXISTS "${_edgeseg_library}")
  set(edgeseg_FOUND FALSE)
  set(edgeseg_NOT_FOUND_MESSAGE
      "${_edgeseg_library} is missing: edgeseg was installed without a C compiler")
  return()
endif()

if(NOT TARGET edgeseg::edgeseg)
  add_library(edgeseg::edgeseg SHARED IMPORTED)
  set_target_properties(edgeseg::edgeseg PROPERTIES
    IMPORTED_LOCATION "${_edgeseg_library}"
    IMPORTED_SONAME "libedgeseg.so.0"
    INTERFACE_INCLUDE_DIRECTORIES "${_edgeseg_prefix}/include")
endif()
