"""What X509-SVID asks of one certificate beyond a valid path, rule by rule (docs/SPIFFE.md lists them).

A signing certificate is whatever stands above the leaf, roots included. Each refusal names the rule that is broken.
"""

from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from transport.errors import IdentityRefused, NotSpiffeId
from transport.identity.svid import SpiffeId, spiffe_id_of

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)


def check_leaf_rules(leaf: x509.Certificate, trust_domain: str) -> SpiffeId:
    """X509-SVID 2, 3.1, 4.1, 4.3, 4.4 and 5.2, and the trust domain of the bundle. Raises IdentityRefused."""
    identity = spiffe_id_of(leaf)
    if identity.trust_domain != trust_domain:
        raise IdentityRefused("the certificate is of another trust domain", rule="trust domain")
    if not identity.name:
        raise IdentityRefused("the certificate names no workload: a role and a name", rule="workload path")
    names = _find(leaf, x509.SubjectAlternativeName)
    if names is not None and not names.critical and not leaf.subject:  # a subject is slow to read
        raise IdentityRefused("the certificate's only name is not marked critical", rule="SAN critical")
    basic = _find(leaf, x509.BasicConstraints)
    if basic is not None and basic.value.ca:
        raise IdentityRefused("the certificate is one of a certificate authority", rule="CA as leaf")
    usage = _key_usage(leaf, svid=True)
    for granted, name in ((usage.key_cert_sign, "keyCertSign"), (usage.crl_sign, "cRLSign")):
        if granted:
            raise IdentityRefused("the certificate's key may sign for an authority", rule=f"key usage {name}")
    if not usage.digital_signature:
        raise IdentityRefused("the certificate's key is not for signatures", rule="key usage digitalSignature")
    extended = _find(leaf, x509.ExtendedKeyUsage)
    both = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    if extended is not None and not both <= set(extended.value):
        raise IdentityRefused(
            "the certificate's extended key usage lacks one of serverAuth and clientAuth", rule="extended key usage"
        )
    return identity


def check_authority_rules(certificate: x509.Certificate) -> None:
    """X509-SVID 3.2, 4.1 and 4.3 for a signing certificate. Raises IdentityRefused."""
    basic = _find(certificate, x509.BasicConstraints)
    if basic is None or not basic.value.ca:
        raise IdentityRefused("a certificate that signs another is not of an authority", rule="authority cA")
    names = _find(certificate, x509.SubjectAlternativeName)
    uris = [] if names is None else names.value.get_values_for_type(x509.UniformResourceIdentifier)
    ids = [uri for uri in uris if uri.startswith("spiffe:")]
    if not _key_usage(certificate, svid=bool(ids)).key_cert_sign:
        raise IdentityRefused("an authority's key is not for signing certificates", rule="authority keyCertSign")
    for uri in ids:
        try:
            path = SpiffeId.parse(uri.removesuffix("/")).path  # the specification's own example ends with a slash
        except NotSpiffeId as error:
            raise IdentityRefused("an authority's URI name is not a SPIFFE ID", rule=error.rule) from None
        if path:
            raise IdentityRefused("an authority has the SPIFFE ID of a workload", rule="authority path")


def _key_usage(certificate: x509.Certificate, *, svid: bool) -> x509.KeyUsage:
    usage = _find(certificate, x509.KeyUsage)
    if usage is None:
        raise IdentityRefused("a certificate does not say what its key is for", rule="key usage missing")
    if svid and not usage.critical:
        raise IdentityRefused("a certificate's key usage is not marked critical", rule="key usage critical")
    return usage.value


def _find(certificate: x509.Certificate, kind: type[_Extension]) -> x509.Extension[_Extension] | None:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None
