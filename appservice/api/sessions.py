"""Signing in and out, and who one is."""

from __future__ import annotations

from appservice.api.declare import Call, Route
from appservice.api.models import Done, Me, RefreshRequest, SignInRequest, TokenAnswer
from appservice.api.permissions import Permission
from appservice.api.sign_in import SignedTokens, SignIn


class SessionRoutes:
    """Sessions of people."""

    def __init__(self, sign_in: SignIn) -> None:
        self._sign_in = sign_in

    def routes(self) -> list[Route]:
        """Their declarations."""
        begin, read = Permission.SIGN_IN, Permission.READ_SESSION
        return [
            Route("POST", "/auth/openid", begin, "Sign in with a Matrix OpenID token",
                  self._openid, TokenAnswer, SignInRequest, is_sign_in=True),
            Route("POST", "/auth/refresh", begin, "The next pair of tokens",
                  self._refresh, TokenAnswer, RefreshRequest, is_sign_in=True),
            Route("POST", "/auth/sign-out", read, "End this session", self._end, Done),
            Route("GET", "/me", read, "Who calls", self._me, Me),
        ]  # fmt: skip

    async def _openid(self, call: Call) -> TokenAnswer:
        body = call.sent(SignInRequest)
        return _tokens(
            await self._sign_in.begin(
                openid_token=body.access_token,
                openid_server=body.matrix_server_name,
                device_id=body.device_id,
                signature=body.signature,
                now=call.now,
            )
        )

    async def _refresh(self, call: Call) -> TokenAnswer:
        token = call.sent(RefreshRequest).refresh_token
        return _tokens(await self._sign_in.refresh(token, call.now))

    async def _end(self, call: Call) -> Done:
        await self._sign_in.end(call.caller, call.now)
        return Done()

    async def _me(self, call: Call) -> Me:
        caller = call.caller
        return Me(
            caller=caller.id,
            roles=sorted(caller.who),
            account=caller.account,
            ward=caller.ward,
        )


def _tokens(tokens: SignedTokens) -> TokenAnswer:
    return TokenAnswer(
        access_token=tokens.access, expires_in=tokens.expires_in_s, refresh_token=tokens.refresh
    )
