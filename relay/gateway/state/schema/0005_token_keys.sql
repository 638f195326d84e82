-- Keys that sign tokens. Times are unix seconds.

CREATE TABLE token_keys (
    kid     TEXT PRIMARY KEY,   -- RFC 7638
    purpose TEXT NOT NULL,      -- what they sign: access, jwt-svid
    private BLOB NOT NULL,      -- what its custody keeps of it: PKCS#8, or the name of a key that is elsewhere
    created INTEGER NOT NULL,
    begins  INTEGER NOT NULL,   -- signs from then on; 0: published, and signs nothing yet
    ended   INTEGER NOT NULL    -- signs no longer since then; 0: it has not ended
) STRICT;

CREATE UNIQUE INDEX one_token_key_signs ON token_keys (purpose) WHERE begins > 0 AND ended = 0;
CREATE UNIQUE INDEX one_token_key_comes ON token_keys (purpose) WHERE begins = 0;
