# The same rules as factory.cedar, for OPA: `opa run --server factory.rego`, and in gateway.toml
# [policy] opa = "http://127.0.0.1:8181/v1/data/causeway/allow"
package causeway

import rego.v1

default allow := false

allow if {
	permitted
	not forbidden
}

permitted if {
	"factory-floor" in input.principal.groups
	input.action == "model:invoke"
	input.resource.id == "defect-detection"
}

permitted if {
	"office" in input.principal.groups
	input.action == "model:invoke"
	input.resource.id == "gpt-4o-mini"
}

permitted if {
	input.principal.role == "edge"
	input.action in {"relay:use", "package:fetch"}
}

permitted if {
	"office" in input.principal.groups
	input.action == "data:read"
	input.principal.posture.disk == "encrypted"
}

permitted if {
	"administrators" in input.principal.groups
	startswith(input.action, "admin:")
}

forbidden if {
	input.action == "model:invoke"
	input.principal.posture.disk == "not encrypted"
}

forbidden if {
	input.action == "model:invoke"
	input.principal.posture.version_number > 0
	input.principal.posture.version_number < 1000
}
