"""A login keyring in memory, which can be made to fail or to forget."""

from keyring.backends.SecretService import Keyring as SecretService


class FakeSecretService(SecretService):
    """In memory. `error` is what the next call meets."""

    __module__ = SecretService.__module__

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self.error: Exception | None = None
        self.forgetful = False
        self.asked = 0

    def _meet(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def get_password(self, service: str, username: str) -> str | None:
        self._meet()
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self._meet()
        if not self.forgetful:
            self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        self._meet()
        del self.kept[service, username]
