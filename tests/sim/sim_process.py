"""What every simulated process has: turns when something arrived or is due, stops, crashes."""

from collections.abc import Callable

from sim_net import Context, Network
from sim_world import World


class Process:
    """A process on a host of its own. Subclasses give ``begin``, ``turn``, ``due_ms``, ``drop``."""

    def __init__(self, world: World, net: Network, host: str) -> None:
        self.world, self.net, self.host = world, net, host
        self.is_up = False
        self.is_paused = False
        self.life = 0  #: counts starts: what an older life left behind does nothing
        self.context = Context(net, host, self.wake)
        self._is_woken = False
        self._timer_at = -1

    def start(self) -> None:
        """The process begins, if it does not run."""
        if self.is_up:
            return
        self.life += 1
        self.is_up, self._is_woken, self._timer_at = True, False, -1
        self.context = Context(self.net, self.host, self.wake)
        self.world.note(f"{self.host} starts")
        self.begin()
        self.wake()

    def crash(self) -> None:
        """kill -9."""
        if not self.is_up:
            return
        self.is_up = self.is_paused = False
        self.world.note(f"{self.host} crashes")
        self.context.close()
        self.drop()

    def pause(self) -> None:
        """SIGSTOP."""
        self.is_paused = True
        self.world.note(f"{self.host} is stopped")

    def resume(self) -> None:
        """SIGCONT."""
        if self.is_paused:
            self.is_paused = False
            self.world.note(f"{self.host} goes on")
            self.wake()

    def alive(self) -> Callable[[], bool]:
        """Whether the life that asks now is still the current one."""
        life = self.life
        return lambda: self.is_up and self.life == life

    def wake(self) -> None:
        """Something is there for it."""
        if self.is_up and not self._is_woken:
            self._is_woken = True
            self.world.at(self.world.random.choice((0, 0, 1, 3)), self._turn_if(self.alive()))

    def _turn_if(self, is_alive: Callable[[], bool]) -> Callable[[], None]:
        def run() -> None:
            if is_alive():
                self._is_woken = False
                if not self.is_paused:
                    self.turn()
                    self._set_timer()

        return run

    def _set_timer(self) -> None:
        if not self.is_up:
            return
        due = max(self.due_ms(), self.world.now + 1)
        if self._timer_at <= self.world.now or due < self._timer_at:
            self._timer_at = due
            is_alive = self.alive()

            def ring() -> None:
                if is_alive() and self._timer_at == due and not self.is_paused:
                    self._timer_at = -1
                    self.turn()
                    self._set_timer()
                elif is_alive() and self._timer_at == due:
                    self._timer_at = -1

            self.world.at(due - self.world.now, ring)

    # ------------------------------------------------------------ what subclasses give

    def begin(self) -> None:
        """Builds the real process."""
        raise NotImplementedError

    def turn(self) -> None:
        """One turn of its loop."""
        raise NotImplementedError

    def due_ms(self) -> int:
        """When it wants a turn though nothing arrives."""
        raise NotImplementedError

    def drop(self) -> None:
        """Gives back what the operating system would."""
