# The wire formats between sites: protobuf and gRPC code made from the .proto files of src/sites. A library of its own,
# because made code does not pass our warnings.
set(wire_dir ${CMAKE_BINARY_DIR}/wire)
file(MAKE_DIRECTORY ${wire_dir})
set(wire_made)
foreach(wire_proto ${PROJECT_SOURCE_DIR}/src/sites/transport/wire.proto ${PROJECT_SOURCE_DIR}/src/sites/join/door.proto)
  get_filename_component(wire_name ${wire_proto} NAME_WE)
  get_filename_component(wire_from ${wire_proto} DIRECTORY)
  set(made ${wire_dir}/${wire_name}.pb.cc ${wire_dir}/${wire_name}.pb.h
           ${wire_dir}/${wire_name}.grpc.pb.cc ${wire_dir}/${wire_name}.grpc.pb.h)
  add_custom_command(
    OUTPUT ${made}
    COMMAND protobuf::protoc --proto_path=${wire_from} --cpp_out=${wire_dir} --grpc_out=${wire_dir}
            --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin> ${wire_proto}
    DEPENDS ${wire_proto}
    VERBATIM)
  list(APPEND wire_made ${made})
endforeach()
add_library(pelago_wire STATIC ${wire_made})
target_compile_options(pelago_wire PRIVATE -w)
pelago_calm(pelago_wire)
target_include_directories(pelago_wire SYSTEM PUBLIC ${wire_dir})
# PRIVATE: their -pthread would make the precompiled torch header unusable for everyone above.
target_link_libraries(pelago_wire PRIVATE gRPC::grpc++ protobuf::libprotobuf)
