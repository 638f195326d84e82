/* One prompt's way from the edge's outbox through links, tickets and the gateway's journal to a provider, and back.
   What it says and leaves out is in README.md beside it. Checked by scripts/model. */

#ifndef HARMS
#define HARMS 4                 /* cuts, crashes, restores, replays, forged hints, a cancel, an expiry: in any mix */
#endif
#define LINKS (2 * HARMS + 2)   /* enough for the edge to come back after every harm */
#define STRANGER (LINKS + 1)    /* the link of whoever replays a flight */
#define EARLIER (LINKS + 2)     /* the ticket of a session from before the prompt */
#define TICKETS (LINKS + 3)

/* WELCOME_FIRST: the edge has early data switched off, and asks nothing before `welcome`. */
#ifdef BUG_ASKS_EARLY
#define WELCOME_FIRST
#endif

mtype = { HELLO, OPEN, RESUME, CANCEL };                               /* edge to gateway */
mtype = { WELCOME, TICKET_REFUSED, PART, END, UNKNOWN, INTERRUPTED, CANCELLED, EXPIRED, REJECTED, SUPERSEDED };  /* and back */
mtype = { NONE, WAITING, SENT, DONE, FAILED };                         /* the row in the outbox, with three of above */
mtype = { CLAIMED, ANSWERED, STOPPED };                                /* the row in the journal, with NONE */

chan up = [6] of { mtype, byte, byte };    /* message, link, ticket (hello; 0 is a full handshake) */
chan down = [6] of { mtype, byte, byte };  /* message, link, epoch (welcome) */

/* On stable storage. */
mtype row = NONE;
byte mark, seen;                /* epoch under which the row was sent; epoch last told */
bool unconfirmed;               /* a cancel that the gateway has not confirmed */
mtype journal = NONE;
byte epoch = 1;

/* In the edge's memory. */
byte link, number;              /* the link it uses, 0 for none; how many it has used */
bool open, resumed;             /* the session stands; what was asked last is the rest of an earlier answer */
bool was_sent;                  /* the request may have reached a gateway */
byte has;                       /* of the answer: 0 nothing, 1 a part, 2 all */
byte ticket;                    /* 0: none */

/* In the gateway's memory. */
bool live[TICKETS], admitted[TICKETS];
bool running;                   /* a call at the provider */
byte reader;                    /* the link that gets its answer */

/* The world. */
byte accepted;                  /* calls that the provider accepted */
byte consumed[TICKETS];       /* times a ticket opened a session */
byte harms = 0;
bool gateway_died, passed, edge_dies, gateway_dies;
#ifdef WELCOME_FIRST
bool died_since_welcome;        /* gateway_died counts only from the welcome that the prompt was sent behind, or from its flight */
#endif
mtype kept = NONE;              /* the last early flight, for whoever wants to replay it */
byte kept_ticket;

#define settled (row == DONE || row == FAILED || row == INTERRUPTED || row == EXPIRED || row == CANCELLED)
#define unsettled (row == WAITING || row == SENT)

inline lose_link() { link = 0; open = false }

/* A message to the edge; into the void if the link is the stranger's or has been left. */
inline tell(message) {
  if
  :: where == link -> down ! message, where, epoch
  :: else
  fi
}

inline keep(message_) { if :: from -> kept = message_; kept_ticket = from :: else fi }

/* The request leaves as `open`: on stable storage first, with the epoch last told. */
inline send_open(under) {
  atomic {
    row = SENT; mark = under;
#ifdef WELCOME_FIRST
    gateway_died = died_since_welcome
#endif
  }
  atomic { was_sent = true; resumed = false; if :: link -> up ! OPEN, link, 0; keep(OPEN) :: else fi }
}

inline send_resume() {
  atomic { resumed = true; if :: link -> up ! RESUME, link, 0; keep(RESUME) :: else fi }
}

/* Asks for the answer, to have a stream that can be cancelled. */
inline send_cancel() {
  send_resume();
  atomic { if :: link -> up ! CANCEL, link, 0 :: else fi }
}

proctype Edge() {
  byte from, told; mtype message;
end_or_again:
  { 
end_idle:
  do
  :: row == NONE ->                                            /* from here on it must have an outcome */
     atomic { row = WAITING; if :: true :: seen = epoch; ticket = EARLIER; live[EARLIER] = true fi }
  :: unsettled && passed -> row = EXPIRED
  :: unsettled && harms < HARMS ->                             /* the user wants it no more */
     atomic { harms++; unconfirmed = (row == SENT); row = CANCELLED }
     if :: unconfirmed && open -> send_cancel() :: else fi
  :: (unsettled || (unconfirmed && !passed)) && !link && number < LINKS ->
     atomic {
       number++; link = number; open = false; resumed = false;
       from = ticket; ticket = 0;
       up ! HELLO, link, from
     }
     if                                                        /* in the same flight, where an epoch is known */
     :: unsettled && was_sent -> send_resume()
#ifdef BUG_ASKS_EARLY
     :: unsettled && !was_sent && seen -> died_since_welcome = false; send_open(seen)
#elif !defined(WELCOME_FIRST)
     :: unsettled && !was_sent && seen -> send_open(seen)
#endif
     :: else
     fi;
     from = 0
  :: nempty(down) ->
     atomic {
       down ? message, from, told;
       if
       :: from != link || (!open && message != WELCOME && message != TICKET_REFUSED) -> message = 0; told = 0
       :: else
       fi;
       from = 0
     }
     if
     :: message == WELCOME ->
        atomic {
          open = true; ticket = link; seen = told;
          if :: unsettled && was_sent && !resumed -> mark = told :: else fi
        }
        if
        :: unsettled && !was_sent -> send_open(told)
        :: unconfirmed -> send_cancel()
        :: else
        fi
     :: message == TICKET_REFUSED ->                           /* unauthenticated: proves nothing */
        atomic {
          lose_link();
#ifdef BUG_TRUST_HINT
          was_sent = false
#endif
        }
     :: message == PART && unsettled -> if :: has == 0 -> has = 1 :: else fi
     :: message == END && unsettled ->
        has = 2;
        atomic { row = DONE; assert(accepted == 1) }
     :: message == UNKNOWN && unsettled && resumed ->
        if
#ifdef BUG_IGNORE_EPOCH
        :: has == 0 -> send_open(mark)
        :: else -> row = INTERRUPTED
#else
        :: seen == mark && has == 0 -> send_open(mark)
        :: else -> atomic { row = INTERRUPTED; assert(gateway_died || passed) }
#endif
        fi
     :: message == INTERRUPTED && unsettled -> atomic { row = INTERRUPTED; assert(gateway_died || passed) }
     :: message == EXPIRED && unsettled -> row = EXPIRED
     :: message == REJECTED && unsettled -> row = FAILED
     :: message == SUPERSEDED && unsettled -> send_resume()     /* somebody replays what this edge has sent */
     :: unconfirmed && (message == CANCELLED || message == UNKNOWN || message == INTERRUPTED || message == EXPIRED ||
                        message == END) -> unconfirmed = false
     :: else
     fi;
     atomic { message = 0; told = 0 }
  od
  } unless { edge_dies };
  atomic {
    edge_dies = false; lose_link(); ticket = 0; has = 0; resumed = false;
    was_sent = (row == SENT); message = 0; from = 0; told = 0;
  }
  goto end_or_again
}

proctype Gateway() {
  byte where, by; mtype message;
end_or_again:
  {
end_idle:
  do
  :: nempty(up) ->
     atomic {
       up ? message, where, by;
       if :: message != HELLO && !admitted[where] -> message = 0; where = 0 :: else fi
     }
     if
     :: message == HELLO ->
        if
        :: by == 0 || live[by] ->
           atomic {
             if :: by -> consumed[by]++; assert(consumed[by] == 1) :: else fi;
#ifndef BUG_TICKET_KEPT
             live[by] = false;
#endif
             admitted[where] = true; live[where] = true;
#ifdef WELCOME_FIRST
             if :: where == link -> died_since_welcome = false :: else fi;
#endif
             tell(WELCOME)
           }
        :: else -> atomic { tell(TICKET_REFUSED) }
        fi
     :: message == OPEN ->
        if
        :: passed -> atomic { tell(EXPIRED) }
        :: !passed && journal == NONE ->
           if
           :: atomic { tell(REJECTED) }                        /* a check says no before anything is claimed */
           ::
#ifdef BUG_CLAIM_AFTER_CALL
              atomic { accepted++; assert(accepted <= 1) }
              atomic { journal = CLAIMED; running = true; reader = where }
#else
              journal = CLAIMED;
              atomic { accepted++; assert(accepted <= 1); running = true; reader = where }
#endif
           fi
        :: else -> goto known
        fi
     :: message == RESUME ->
        if
        :: journal == NONE || passed -> atomic { tell(UNKNOWN) }
        :: else -> goto known
        fi
     :: message == CANCEL ->
        if
        :: running -> atomic { journal = STOPPED; running = false; reader = 0; tell(CANCELLED) }
        :: else
        fi
     :: else
     fi;
     goto next;
known:
     atomic {
       if
       :: journal == CLAIMED && running ->
#ifndef BUG_SILENT_TAKEOVER
          if :: reader && reader != where && reader == link -> down ! SUPERSEDED, reader, 0 :: else fi;
#endif
          reader = where
       :: journal == CLAIMED && !running -> tell(INTERRUPTED)
       :: journal == ANSWERED -> tell(PART); tell(END)
       :: journal == STOPPED -> tell(CANCELLED)
       :: journal == NONE -> tell(UNKNOWN)
       fi
     };
next:
     atomic { message = 0; where = 0; by = 0 }
  :: running && reader && reader == link && has == 0 && len(down) == 0 -> atomic { where = reader; tell(PART); where = 0 }
  :: running ->                                                /* the answer is whole, stored, and only then ended */
     atomic { journal = ANSWERED; running = false; where = reader; reader = 0 }
     if :: where && where == link -> atomic { tell(PART); tell(END) } :: else fi;
     where = 0
  :: passed && journal != NONE && !running -> journal = NONE   /* the tombstone goes with the expiry */
  od
  } unless { gateway_dies };
  atomic {
    gateway_dies = false; gateway_died = true;
#ifdef WELCOME_FIRST
    died_since_welcome = true;
#endif
    running = false; reader = 0;
    for (where : 0 .. LINKS + 2) { live[where] = false; admitted[where] = false }
    do :: up ? message, where, by :: empty(up) -> break od;    /* its connections die with it */
    lose_link(); message = 0; where = 0; by = 0
  }
  goto end_or_again
}

/* Everything that can go wrong, a bounded number of times. */
proctype World() {
  mtype message; byte a, b;
end_idle:
  do
  :: harms < HARMS ->
     atomic {
       harms++;
       if
       :: link -> lose_link(); if :: true :: do :: up ? message, a, b :: empty(up) -> break od fi   /* late or lost */
       :: edge_dies = true
       :: gateway_dies = true
       :: gateway_dies = true; epoch++; journal = NONE         /* and its journal is restored from before */
       :: kept != NONE && len(up) < 4 -> up ! HELLO, STRANGER, kept_ticket; up ! kept, STRANGER, 0
       :: link && !open && len(down) < 6 -> down ! TICKET_REFUSED, link, 0
       :: !passed -> passed = true
       fi;
       message = 0; a = 0; b = 0
     }
  :: harms == HARMS -> break
  od
}

/* When nothing can move any more, the prompt has an outcome. */
proctype Judge() {
  timeout -> assert(settled)
}

init { atomic { run Edge(); run Gateway(); run World(); run Judge() } }
