"""What FAJMA says to one person about his account, in his language. Pure.

Letters go on paper or by voice from the operator; notices go as server notices, in clear text, so
nothing clinical and no patient is ever in them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fajma.commands import Action, usage
from fajma.language import Language, shown, translator
from fajma.store.people import MAX_NAME


def welcome(
    language: Language,
    *,
    account: str,
    password: str | None,
    homeserver: str,
    here: bool,
    room: str | None,
) -> str:
    """How a new member of staff begins.

    Args:
        language: of the person.
        account: full user id.
        password: the first password, if the person has none of his own.
        homeserver: address to type in Element.
        here: whether the account is on our homeserver (otherwise we cannot set its push rules).
        room: name of the ward's room to which the person is invited, if to one.
    """
    _ = translator(language).gettext
    steps = []
    if password is not None:
        steps += [
            _("Install Element and choose Sign in."),
            *_sign_in(language, account, password, homeserver),
            _(
                "In Settings, Security: set up Secure Backup; write the recovery key on paper. Keep"
                " the paper in a safe at work, not on the phone."
            ),
            _("In Settings: change the password, and let the phone show notifications."),
        ]
    else:
        steps += [
            _(
                "In Element, Settings, Security: see that this device is verified and that Secure"
                " Backup is set up. The recovery key stands on paper, in a safe at work."
            ),
            _("In Element, Settings, Notifications: let the phone show notifications."),
        ]
    if room is not None:
        steps += [
            _(
                "Accept the invitation to the room {room}: its alarms reach only who is in it."
            ).format(room=room),
            _try_it(language),
        ]
    more = [] if here else [partner_rules(language)]
    return _letter(_("Your FAJMA account: {account}").format(account=account), steps, *more)


def lost_phone_elsewhere(language: Language, *, account: str) -> str:
    """The same for somebody of a partner's homeserver, whose sessions are not ours to end."""
    _ = translator(language).gettext
    return _(
        "Lost phone of {account}: it gets nothing from this hospital any more. Ask the hospital of"
        " your account to sign it out and to give you a new password."
    ).format(account=account)


def lost_phone(
    language: Language,
    *,
    account: str,
    password: str,
    homeserver: str,
    devices: Sequence[str],
    stolen: bool,
    room: str | None,
) -> str:
    """What somebody does who has lost a phone: what to type where."""
    _ = translator(language).gettext
    head = (
        _(
            "Lost phone of {account}: these devices are signed out and get no key again: {devices}"
        ).format(account=account, devices=", ".join(shown(one, MAX_NAME) for one in devices))
        if devices
        else _("Lost phone of {account}: no device is signed in.").format(account=account)
    )
    steps = [
        _("On the new phone install Element and choose Sign in."),
        *_sign_in(language, account, password, homeserver),
    ]
    if not stolen:
        steps += _verify(language)
    else:
        steps += [
            _(
                "The old identity may be in other hands, so it is trusted no more. When Element"
                " asks to verify, choose to reset everything, and write the new recovery key on"
                " paper."
            ),
            _(
                "Call two colleagues of the ward, or the operator: each asks you whether you reset"
                " your keys, and types the line that FAJMA shows. Until then you get neither vitals"
                " nor alarms."
            ),
        ]
    steps.append(_("In Settings: change the password."))
    if room is not None:
        steps.append(_try_it(language))
    return _letter(head, steps)


def new_password(language: Language, *, account: str, password: str, homeserver: str) -> str:
    """To somebody whose letter was lost, or who forgot the password."""
    _ = translator(language).gettext
    head = _("New password of {account}. Where you are signed in nothing changes.").format(
        account=account
    )
    steps = [
        _("Elsewhere install Element and choose Sign in."),
        *_sign_in(language, account, password, homeserver),
        *_verify(language),
        _("In Settings: change the password."),
    ]
    return _letter(head, steps)


def partner_rules(language: Language) -> str:
    """What staff of another homeserver must set themselves; we cannot do it for them."""
    _ = translator(language).gettext
    return _(
        "Your account is on another hospital's homeserver, where we cannot set what makes your"
        " phone ring. Ask its operator to run `fajma staff check`, or follow docs/push.md."
    )


def unsigned_device(language: Language, *, device: str) -> str:
    """To a person on duty who has a device that he has not confirmed."""
    _ = translator(language).gettext
    return _(
        "Your device {device} is not confirmed: it gets neither vitals nor alarms. If it is yours:"
        " open Element on it, choose Verify, and confirm from your other device or with your"
        " recovery key. If it is not yours: tell the operator now."
    ).format(device=shown(device, MAX_NAME))


def changed_identity(language: Language, *, staff: bool, code: str) -> str:
    """To a person whose cross-signing identity is not the one we know.

    Args:
        language: of the person.
        staff: whether colleagues accept it, or the care team.
        code: which new keys these are; not secret.
    """
    _ = translator(language).gettext
    if not staff:
        return _(
            "The security keys of your account were reset (code {code}). Until your care team"
            " accepts them you cannot read what is new in the consultation. Call the ward, say"
            " whether it was you, and read this code to them."
        ).format(code=code)
    return _(
        "The security keys of your account were reset (code {code}). Until they are accepted you"
        " get neither vitals nor alarms. If it was you: call two colleagues of your ward, or the"
        " operator, say on which device you did it, and read this code to them. If it was not you:"
        " tell the operator now."
    ).format(code=code)


def no_phone(language: Language) -> str:
    """To a person on duty to whose phone nothing is pushed."""
    _ = translator(language).gettext
    return _(
        "You are on duty and no phone of yours gets notifications: alarms cannot ring. Sign in with"
        " Element on your phone and let it show notifications. If you are signed in there: in"
        " Element, Settings, Notifications, enable notifications for this device."
    )


def muted(language: Language) -> str:
    """To a person on duty who has switched all notifications off."""
    _ = translator(language).gettext
    return _(
        "You are on duty and your account has all notifications off: alarms cannot ring. In"
        " Element, Settings, Notifications: enable notifications for this account."
    )


def outage(language: Language, *, ward: str, on_duty: bool) -> str:
    """To the operators: a ward that no alarm would wake."""
    _ = translator(language).gettext
    text = (
        _("Ward {ward}: nobody is on duty. Everybody's phone rings until somebody takes duty.")
        if not on_duty
        else _(
            "Ward {ward}: nobody on duty can be reached (no phone that rings, or no confirmed"
            " device)."
        )
    )
    return text.format(ward=ward)


def room_lost(language: Language, *, room_id: str, code: str) -> str:
    """To an operator: FAJMA cannot look after a room any more; in clear, so no bed."""
    _ = translator(language).gettext
    return _(
        "FAJMA cannot look after the room {room} any more ({code}): end its consultation and open a"
        " new one, and find out who changed the room. See `fajma consultation list`."
    ).format(room=room_id, code=code)


def room_contested(language: Language, *, room_id: str) -> str:
    """To an operator: somebody changes a room back again and again; in clear, so no bed."""
    _ = translator(language).gettext
    return _(
        "Somebody changes the room {room} again and again, and FAJMA changes it back: find out who."
        " The audit log says when."
    ).format(room=room_id)


def undeliverable(language: Language, *, room_id: str) -> str:
    """To the operators: a room to which alarms do not get through."""
    _ = translator(language).gettext
    return _(
        "Alarms do not get through to the room {room}: the homeserver or the room refuses them."
        " Look whether @fajma-alerts is still in it, and at the log of FAJMA."
    ).format(room=room_id)


def drill(language: Language, *, ward: str) -> str:
    """To the operators: their channel is tried with every drill."""
    _ = translator(language).gettext
    return _("Ward {ward}: a drill has begun; this notice shows that yours arrive.").format(
        ward=ward
    )


def _letter(head: str, steps: Sequence[str], *more: str) -> str:
    """Numbered steps with room between them, to be read on paper."""
    numbered = [f"{number}. {step}" for number, step in enumerate(steps, start=1)]
    return "\n\n".join([head, *numbered, *more])


def _sign_in(language: Language, account: str, password: str, homeserver: str) -> list[str]:
    _ = translator(language).gettext
    return [
        _("Edit the homeserver and type: {homeserver}").format(homeserver=homeserver),
        _("User name: {name}    Password: {password}").format(
            name=_localpart(account), password=password
        ),
    ]


def _verify(language: Language) -> list[str]:
    """On a new device, when the identity is still good."""
    _ = translator(language).gettext
    return [
        _(
            "Element asks to verify: choose the recovery key, and type the key from your paper."
            " Vitals and alarms come at once."
        ),
        _(
            "Without the paper: choose to reset everything. Then call two colleagues of the ward,"
            " or the operator: each asks you whether you reset your keys, and types the line that"
            " FAJMA shows."
        ),
    ]


def _try_it(language: Language) -> str:
    _ = translator(language).gettext
    return _(
        "In the ward's room type {drill}: it rings the phones of those on duty. To try your own,"
        " take duty first: {take}"
    ).format(drill=usage(Action.DRILL_START, language), take=usage(Action.DUTY_TAKE, language))


def _localpart(account: str) -> str:
    return account[1:].split(":", 1)[0]
