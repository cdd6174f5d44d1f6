"""What FAJMA says to one person about his account, in his language. Pure.

Letters go on paper or by voice from the operator; notices go as server notices, in clear text, so
nothing clinical and no patient is ever in them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fajma.language import Language, shown, translator
from fajma.store.people import MAX_NAME


def welcome(
    language: Language, *, account: str, password: str | None, homeserver: str, here: bool
) -> str:
    """How a new member of staff begins.

    Args:
        language: of the person.
        account: full user id.
        password: the first password, if we made the account.
        homeserver: address to type in Element.
        here: whether the account is on our homeserver (otherwise we cannot set its push rules).
    """
    _ = translator(language).gettext
    lines = [_("Your FAJMA account: {account}").format(account=account)]
    if password is not None:
        lines += [
            _("1. Install Element and choose Sign in."),
            _("2. Edit the homeserver and type: {homeserver}").format(homeserver=homeserver),
            _("3. User name: {name}    Password: {password}").format(
                name=_localpart(account), password=password
            ),
            _(
                "4. In Settings, Security: set up Secure Backup; write the recovery key on paper."
                " Keep the paper in the ward's safe, not on the phone."
            ),
            _("5. In Settings: change the password, and let the phone show notifications."),
            _("6. In the ward's room type: !test (your phone must ring)"),
        ]
    if not here:
        lines.append(partner_rules(language))
    return "\n".join(lines)


def lost_phone(
    language: Language,
    *,
    account: str,
    password: str,
    homeserver: str,
    devices: Sequence[str],
    stolen: bool,
) -> str:
    """What somebody does who has lost a phone: what to type where."""
    _ = translator(language).gettext
    lines = [
        _(
            "Lost phone of {account}: these devices are signed out and get no key again: {devices}"
        ).format(account=account, devices=", ".join(shown(one, MAX_NAME) for one in devices)),
        _("1. On the new phone install Element and choose Sign in."),
        _("2. Edit the homeserver and type: {homeserver}").format(homeserver=homeserver),
        _("3. User name: {name}    Password: {password}").format(
            name=_localpart(account), password=password
        ),
    ]
    if not stolen:
        lines += [
            _(
                "4. Element asks to verify: choose the recovery key, and type the key from your"
                " paper. Vitals and alarms come at once."
            ),
            _(
                "5. Without the paper: choose to reset everything. Then call two colleagues of the"
                " ward: each types in the ward's room the line that FAJMA shows there."
            ),
        ]
    else:
        lines += [
            _(
                "4. The old identity may be in other hands, so it is trusted no more. When Element"
                " asks to verify, choose to reset everything, and write the new recovery key on"
                " paper."
            ),
            _(
                "5. Call two colleagues of the ward: each types in the ward's room the line that"
                " FAJMA shows there. Until then you get neither vitals nor alarms."
            ),
        ]
    lines.append(_("6. In Settings: change the password. In the ward's room type: !test"))
    return "\n".join(lines)


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


def changed_identity(language: Language, *, staff: bool) -> str:
    """To a person whose cross-signing identity is not the one we know."""
    _ = translator(language).gettext
    if not staff:
        return _(
            "The security keys of your account were reset. Until your care team accepts them you"
            " cannot read what is new in the consultation. Call the ward and say so."
        )
    return _(
        "The security keys of your account were reset. Until they are accepted you get neither"
        " vitals nor alarms. If it was you: call two colleagues of your ward, who accept it in the"
        " ward's room, or the operator. If it was not you: tell the operator now."
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


def drill(language: Language, *, ward: str) -> str:
    """To the operators: their channel is tried with every drill."""
    _ = translator(language).gettext
    return _("Ward {ward}: a drill has begun; this notice shows that yours arrive.").format(
        ward=ward
    )


def _localpart(account: str) -> str:
    return account[1:].split(":", 1)[0]
