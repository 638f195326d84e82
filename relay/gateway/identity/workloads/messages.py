"""The messages of the SPIFFE Workload API, as a description that protobuf makes classes of.

Names, numbers and types are those of the specification's service definition (SPIFFE Workload API sections 5.1 and 6.1),
which has no package. They are kept in a pool of their own: a process may also hold a client with a description of its
own under the same names.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

SERVICE: Final = "SpiffeWorkloadAPI"
_STRING, _BYTES, _MESSAGE = 9, 12, 11  # FieldDescriptorProto.Type
_ONE, _MANY = 1, 3  # FieldDescriptorProto.Label; in proto3 `optional` is the plain one
_FILE: Final = "causeway/workload.proto"

# message: [(name, number, type, many, name of its message)]
_MESSAGES: Final[dict[str, list[tuple[str, int, int, bool, str]]]] = {
    "X509SVIDRequest": [],
    "X509SVID": [
        ("spiffe_id", 1, _STRING, False, ""), ("x509_svid", 2, _BYTES, False, ""),
        ("x509_svid_key", 3, _BYTES, False, ""), ("bundle", 4, _BYTES, False, ""), ("hint", 5, _STRING, False, ""),
    ],
    "X509SVIDResponse": [
        ("svids", 1, _MESSAGE, True, "X509SVID"), ("crl", 2, _BYTES, True, ""),
        ("federated_bundles", 3, _MESSAGE, True, "map"),
    ],
    "X509BundlesRequest": [],
    "X509BundlesResponse": [("crl", 1, _BYTES, True, ""), ("bundles", 2, _MESSAGE, True, "map")],
    "JWTSVIDRequest": [("audience", 1, _STRING, True, ""), ("spiffe_id", 2, _STRING, False, "")],
    "JWTSVID": [("spiffe_id", 1, _STRING, False, ""), ("svid", 2, _STRING, False, ""), ("hint", 3, _STRING, False, "")],
    "JWTSVIDResponse": [("svids", 1, _MESSAGE, True, "JWTSVID")],
    "JWTBundlesRequest": [],
    "JWTBundlesResponse": [("bundles", 1, _MESSAGE, True, "map")],
    "ValidateJWTSVIDRequest": [("audience", 1, _STRING, False, ""), ("svid", 2, _STRING, False, "")],
    "ValidateJWTSVIDResponse": [
        ("spiffe_id", 1, _STRING, False, ""), ("claims", 2, _MESSAGE, False, "google.protobuf.Struct"),
    ],
}


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, syntax="proto3")
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, many, of in fields:
            if of == "map":  # from trust domain to bundle: a repeated message with a mark
                entry = message.nested_type.add(name="".join(word.title() for word in field.split("_")) + "Entry")
                entry.options.map_entry = True
                entry.field.add(name="key", number=1, type=_STRING, label=_ONE)
                entry.field.add(name="value", number=2, type=_BYTES, label=_ONE)
                of = f"{name}.{entry.name}"
            message.field.add(
                name=field, number=number, type=kind, label=_MANY if many else _ONE, type_name=f".{of}" if of else None
            )
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
_pool.AddSerializedFile(_described().SerializeToString())

# By name, for instance `MESSAGES["X509SVID"](spiffe_id="spiffe://a/b")`.
MESSAGES: Final[dict[str, Any]] = {
    name: message_factory.GetMessageClass(_pool.FindMessageTypeByName(name)) for name in _MESSAGES
}
