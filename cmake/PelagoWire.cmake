# The wire format between sites: protobuf and gRPC code made from src/sites/transport/wire.proto.
# A library of its own, because made code does not pass our warnings.
set(wire_proto ${PROJECT_SOURCE_DIR}/src/sites/transport/wire.proto)
set(wire_dir ${CMAKE_BINARY_DIR}/wire)
set(wire_made ${wire_dir}/wire.pb.cc ${wire_dir}/wire.pb.h
              ${wire_dir}/wire.grpc.pb.cc ${wire_dir}/wire.grpc.pb.h)
file(MAKE_DIRECTORY ${wire_dir})
add_custom_command(
  OUTPUT ${wire_made}
  COMMAND protobuf::protoc --proto_path=${PROJECT_SOURCE_DIR}/src/sites/transport
          --cpp_out=${wire_dir} --grpc_out=${wire_dir}
          --plugin=protoc-gen-grpc=$<TARGET_FILE:gRPC::grpc_cpp_plugin> ${wire_proto}
  DEPENDS ${wire_proto}
  VERBATIM)
add_library(pelago_wire STATIC ${wire_made})
target_compile_options(pelago_wire PRIVATE -w)
target_include_directories(pelago_wire SYSTEM PUBLIC ${wire_dir})
# PRIVATE: their -pthread would make the precompiled torch header unusable for everyone above.
target_link_libraries(pelago_wire PRIVATE gRPC::grpc++ protobuf::libprotobuf)
