# SPDX-License-Identifier: Apache-2.0
set(MUSTER_HAS_CUDA OFF)
if(NOT MUSTER_CUDA OR MUSTER_SANITIZE)
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(STATUS "nvcc was not found: the CUDA backend is not built")
  return()
endif()
find_package(CUDAToolkit QUIET)
if(NOT CUDAToolkit_FOUND OR CUDAToolkit_VERSION VERSION_LESS 12.5)
  message(STATUS "The CUDA backend needs CUDA 12.5 or newer, found \"${CUDAToolkit_VERSION}\": it is not built")
  return()
endif()
if(CUDAToolkit_VERSION VERSION_LESS 12.8)
  list(REMOVE_ITEM MUSTER_CUDA_ARCHITECTURES 100-real)
endif()
set(CMAKE_CUDA_ARCHITECTURES ${MUSTER_CUDA_ARCHITECTURES})
enable_language(CUDA)
set(MUSTER_HAS_CUDA ON)

# The same arithmetic as everywhere: no contraction, no flush to zero, correctly rounded division. Compressed, kernels take a
# sixth of the room.
file(GLOB MUSTER_CUDA_SOURCES CONFIGURE_DEPENDS src/kernels/cuda/*.c src/kernels/cuda/*.cu)
add_library(muster_cuda SHARED ${MUSTER_CUDA_SOURCES})
target_include_directories(muster_cuda PRIVATE include src ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(muster_cuda PRIVATE CUDA::cudart_static Threads::Threads ${CMAKE_DL_LIBS} rt)
target_link_options(muster_cuda PRIVATE -Wl,--exclude-libs,ALL)
set_target_properties(muster_cuda PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION 0 CUDA_STANDARD 17
                      CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
set_property(TARGET muster_cuda PROPERTY COMPILE_OPTIONS
             $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false --threads=0 -Xfatbin=-compress-all -Xcompiler=-Wall,-Wextra>
             $<$<COMPILE_LANGUAGE:C>:-Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes>)
