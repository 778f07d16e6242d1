# SPDX-License-Identifier: Apache-2.0
# What `make install` puts where: the shared library, headers, pkg-config file, CMake package, tool and model.
install(TARGETS muster EXPORT MusterTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
if(MUSTER_HAS_CUDA) # loaded at run time: by the library from beside itself, by the tool from here
  install(TARGETS muster_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} NAMELINK_SKIP)
  set_target_properties(muster_tool PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
endif()
install(TARGETS muster_tool RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/muster DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(DIRECTORY models/kjv-moe DESTINATION ${CMAKE_INSTALL_DATADIR}/muster/models)

configure_file(cmake/muster.pc.in muster.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/muster.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

install(EXPORT MusterTargets NAMESPACE Muster:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Muster)
configure_package_config_file(cmake/MusterConfig.cmake.in MusterConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Muster)
write_basic_package_version_file(MusterConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/MusterConfig.cmake ${PROJECT_BINARY_DIR}/MusterConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Muster)
